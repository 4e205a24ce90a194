"""Bringing a shard file of an older release up to date, in place and in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

_OLD_INDEXES = ("documents_by_name", "documents_by_state", "contents_by_hash", "chunks_by_document")


def from_version_1(db: sqlite3.Connection, create: Callable[[sqlite3.Connection], None]) -> None:
    """Take over every document and its bytes; chunks and vectors are made anew from them.

    A version 1 file does not say what made its vectors well enough to trust them beside others. Its
    documents are queued, the log goes on from where it was, and what answers next is embedded afresh.

    Args:
        db: A connection inside a transaction.
        create: Creates today's tables.
    """
    for name in ("chunks_fts", "chunks", "texts"):
        db.execute(f"DROP TABLE IF EXISTS {name}")
    for name in _OLD_INDEXES:
        db.execute(f"DROP INDEX IF EXISTS {name}")
    for name in ("documents", "contents", "ops", "meta"):
        db.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
    create(db)
    db.execute(
        "INSERT INTO documents(document_id, tenant, library, name, kind, media_type, metadata, content_hash,"
        " num_bytes, state, created_s, updated_s)"
        " SELECT document_id, tenant, library, name, 'file', media_type, '{}', content_hash, num_bytes,"
        " 'queued', created_s, updated_s FROM old_documents"
    )
    db.execute(
        "INSERT INTO contents SELECT document_id, content_hash, data FROM old_contents"
        " JOIN documents USING (document_id, content_hash)"
    )
    db.execute(
        "INSERT INTO ops(seq, version, kind, document_id, content_hash, at_s)"
        " SELECT seq, NULL, kind, document_id, content_hash, at_s FROM old_ops"
    )
    for name in ("documents", "contents", "ops", "meta"):
        db.execute(f"DROP TABLE old_{name}")


def from_version_2(db: sqlite3.Connection) -> None:
    """Take the terms that no base segment holds yet out of their full-text index into a plain table.

    Args:
        db: A connection inside a transaction.
    """
    for (number,) in db.execute("SELECT number FROM versions").fetchall():
        db.execute(f"CREATE TABLE terms_{number}(row_id INTEGER PRIMARY KEY, terms TEXT NOT NULL) STRICT")
        db.execute(f"INSERT INTO terms_{number} SELECT rowid, terms FROM fts_{number}")
        db.execute(f"DROP TABLE fts_terms_{number}")
        db.execute(f"DROP TABLE fts_{number}")
