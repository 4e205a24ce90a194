"""The SQLite schema of a shard, and how its connections are opened.

One file is the truth: original bytes, extracted text, metadata, the log of changes, and for each index
version its chunks with their vectors and terms (`version_tables.py`). Everything a document owns is therefore
added, replaced and removed in one transaction.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from retrieval.errors import IndexUnavailable
from retrieval.truth.upgrade import from_version_1, from_version_2

SCHEMA_VERSION = 3
_APPLICATION_ID = 0x67726674  # "grft"

TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE versions(              -- each has tables of its own, named by its number
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    version_id TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL,             -- JSON of VersionSpec
    state TEXT NOT NULL,
    made_s REAL NOT NULL
) STRICT;

CREATE TABLE aliases(name TEXT PRIMARY KEY, version_id TEXT NOT NULL) STRICT;

CREATE TABLE fields(                -- a metadata field has one type in a shard
    name TEXT PRIMARY KEY,
    type TEXT NOT NULL              -- text, number, boolean or texts
) STRICT;

CREATE TABLE documents(
    document_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    library TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,             -- 'file': has bytes and text; 'record': its one chunk is its text
    media_type TEXT NOT NULL,
    metadata TEXT NOT NULL,         -- canonical JSON
    content_hash TEXT NOT NULL,     -- the bytes accepted last
    active_hash TEXT,               -- the bytes whose chunks answer; NULL until the first is ready
    num_bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    error TEXT,
    num_pages INTEGER,
    created_s REAL NOT NULL,
    updated_s REAL NOT NULL
) STRICT;
CREATE INDEX documents_by_name ON documents(tenant, library, name);
CREATE INDEX documents_queued ON documents(updated_s, document_id) WHERE state='queued';

CREATE TABLE contents(              -- at most two per document: the active bytes and the pending ones
    document_id TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX contents_by_hash ON contents(document_id, content_hash);

CREATE TABLE texts(                 -- of active bytes; a record has none
    document_id TEXT PRIMARY KEY,
    page_starts TEXT NOT NULL,      -- JSON list
    text TEXT NOT NULL
) STRICT;

CREATE TABLE ops(                   -- every change, in order
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    version INTEGER,                -- whose rows changed; 0: every version's; NULL: no version's
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
    """Create the tables in a new file, bring an older one up to date, or check that the file is ours.

    Raises:
        IndexUnavailable: It was made by another program or a newer release.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            create(connection)
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        elif version == 1:
            from_version_1(connection, create)
        elif version == 2:
            from_version_2(connection)
        elif version != SCHEMA_VERSION:
            raise IndexUnavailable(
                f"'{path}' has schema version {version}, this release reads {SCHEMA_VERSION}; "
                "use the release that made it or another data folder"
            )
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def create(connection: sqlite3.Connection) -> None:
    """Create the shard's own tables."""
    pending = ""
    for line in TABLES.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            connection.execute(pending)
            pending = ""
