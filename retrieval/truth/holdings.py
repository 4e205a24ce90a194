"""Documents in the versions beside the active one: held, given up, or copied from another version.

Functions of an open transaction; `store.py` gives them one.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from retrieval.truth import oplog
from retrieval.truth.version_tables import Embedded, Rows, StoredVersion, insert_rows, remove_documents
from retrieval.types import Chunk
from retrieval.vectors import codecs


@dataclass(frozen=True, slots=True)
class Holding:
    """A document that answers, as another version is to hold it."""

    document_id: str
    """The document."""
    content_hash: str
    """The bytes its chunks are of."""
    embedded: Embedded
    """Its chunks in that version."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A document that answers, which a version cannot hold."""

    document_id: str
    """The document."""
    content_hash: str
    """The bytes."""
    error: str
    """Why."""


def hold(db: sqlite3.Connection, number: int, document_id: str, content_hash: str, rows: Rows) -> bool:
    """Put a document that answers into another version; False when its bytes changed meanwhile."""
    if not _answers(db, number, document_id, content_hash):
        return False
    remove_documents(db, number, [document_id])
    insert_rows(db, number, [(document_id, content_hash)], [rows])
    oplog.log(db, "put", [(document_id, content_hash)], number)
    return True


def give_up(db: sqlite3.Connection, number: int, document_id: str, content_hash: str, error: str) -> None:
    """Note that a version cannot hold a document, and why."""
    if _answers(db, number, document_id, content_hash):
        remove_documents(db, number, [document_id])
        db.execute(f"INSERT INTO held_{number} VALUES (?,?,0,?)", (document_id, content_hash, error))
        oplog.log(db, "put", [(document_id, content_hash)], number)


def held_by(
    db: sqlite3.Connection, source: StoredVersion, document_id: str, with_tokens: bool
) -> Holding | GivenUp | None:
    """Return what a version holds of the bytes that answer, for another of its embedder and chunking."""
    held = db.execute(
        f"SELECT h.content_hash, h.error FROM held_{source.number} AS h"
        " JOIN documents AS d USING (document_id) WHERE document_id=? AND h.content_hash=d.active_hash",
        (document_id,),
    ).fetchone()
    if held is None:
        return None
    if held["error"] is not None:
        return GivenUp(document_id, held["content_hash"], held["error"])
    rows = db.execute(
        f"SELECT ordinal, text, start, stop, page, vector, codes FROM chunks_{source.number} AS c"
        f" LEFT JOIN tokens_{source.number} USING (row_id) WHERE document_id=? ORDER BY ordinal",
        (document_id,),
    ).fetchall()
    vectors_ND = codecs.decode(b"".join([row["vector"] for row in rows]), source.spec.vectors, source.dim)
    chunks = [Chunk(*tuple(row)[:5]) for row in rows]
    # A record that came with its vector has no codes.
    codes = [row["codes"] for row in rows if row["codes"] is not None] if with_tokens else []
    return Holding(document_id, held["content_hash"], Embedded(chunks, vectors_ND, codes))


def _answers(db: sqlite3.Connection, number: int, document_id: str, content_hash: str) -> bool:
    return db.execute(
        "SELECT 1 FROM documents, versions WHERE document_id=? AND active_hash=? AND number=?",
        (document_id, content_hash, number),
    ).fetchone() is not None  # fmt: skip
