"""The SQLite schema of a shard, and how its connections are opened.

One file is the truth: original bytes, extracted text, chunks with their vectors, the lexical index and the
log of changes. Everything a document owns is therefore added, replaced and removed in one transaction.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from retrieval.errors import IndexUnavailable

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x67726674  # "grft"

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE documents(
    document_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    library TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    content_hash TEXT NOT NULL,     -- the bytes accepted last
    active_hash TEXT,               -- the bytes whose chunks answer; NULL until the first is ready
    num_bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    error TEXT,
    num_pages INTEGER,
    num_chunks INTEGER NOT NULL DEFAULT 0,
    created_s REAL NOT NULL,
    updated_s REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX documents_by_name ON documents(tenant, library, name);
CREATE INDEX documents_by_state ON documents(state, updated_s);

CREATE TABLE contents(              -- at most two per document: the active bytes and the pending ones
    document_id TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX contents_by_hash ON contents(document_id, content_hash);

CREATE TABLE texts(
    document_id TEXT PRIMARY KEY,
    page_starts TEXT NOT NULL,      -- JSON list
    text TEXT NOT NULL
) STRICT;

CREATE TABLE chunks(                -- only chunks of active versions: what is here is searchable
    row_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    library TEXT NOT NULL,
    document_id TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    page INTEGER,
    text TEXT NOT NULL,
    vector BLOB NOT NULL            -- little-endian float32[dim], L2-normalised
) STRICT;
CREATE UNIQUE INDEX chunks_by_document ON chunks(document_id, ordinal);

CREATE VIRTUAL TABLE chunks_fts USING fts5(
    text, content='chunks', content_rowid='row_id', tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunks_added AFTER INSERT ON chunks BEGIN
    INSERT INTO chunks_fts(rowid, text) VALUES (new.row_id, new.text);
END;
CREATE TRIGGER chunks_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO chunks_fts(chunks_fts, rowid, text) VALUES ('delete', old.row_id, old.text);
END;

CREATE TABLE ops(                   -- every change of what searches can find, in order
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,             -- 'put' or 'delete'
    document_id TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    at_s REAL NOT NULL
) STRICT;
"""


def connect(path: Path, *, cache_bytes: int) -> sqlite3.Connection:
    """Return a connection whose commits survive power loss and whose deleted pages are overwritten."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
        f"cache_size=-{cache_bytes // 1024}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a new file, or check that the file is one of ours.

    Raises:
        IndexUnavailable: It was made by another program or a newer release.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            for statement in _statements():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise IndexUnavailable(
                f"'{path}' has schema version {version}, this release reads {SCHEMA_VERSION}; "
                "use the release that made it or another data folder"
            )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _statements() -> list[str]:
    statements, pending = [], ""
    for line in _TABLES.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
