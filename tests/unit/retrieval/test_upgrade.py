"""A file of an older schema is taken over in place: every document, its bytes, and the log's position."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

import pytest
from small_store import LIBRARY, TENANT, broken_rules, finish, opened, postings, seen, upsert

from retrieval.truth.store import Store, document_id_of
from retrieval.types import DocumentState

VERSION_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE documents(
    document_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, library TEXT NOT NULL, name TEXT NOT NULL,
    media_type TEXT NOT NULL, content_hash TEXT NOT NULL, active_hash TEXT, num_bytes INTEGER NOT NULL,
    state TEXT NOT NULL, error TEXT, num_pages INTEGER, num_chunks INTEGER NOT NULL DEFAULT 0,
    created_s REAL NOT NULL, updated_s REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX documents_by_name ON documents(tenant, library, name);
CREATE INDEX documents_by_state ON documents(state, updated_s);
CREATE TABLE contents(document_id TEXT NOT NULL, content_hash TEXT NOT NULL, data BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX contents_by_hash ON contents(document_id, content_hash);
CREATE TABLE texts(document_id TEXT PRIMARY KEY, page_starts TEXT NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE chunks(
    row_id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, library TEXT NOT NULL,
    document_id TEXT NOT NULL, content_hash TEXT NOT NULL, ordinal INTEGER NOT NULL, start INTEGER NOT NULL,
    stop INTEGER NOT NULL, page INTEGER, text TEXT NOT NULL, vector BLOB NOT NULL
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
CREATE TABLE ops(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, document_id TEXT NOT NULL,
    content_hash TEXT NOT NULL, at_s REAL NOT NULL
) STRICT;
PRAGMA user_version=1;
"""


def _version_1(folder: Path) -> None:
    """Write a file as release 0.1 did: one document ready, one replaced and pending, one failed."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "shard.sqlite3")) as db:
        db.executescript(VERSION_1)
        db.execute("PRAGMA journal_mode=WAL")
        for name, active, pending, state in (
            ("ready.txt", b"apple", b"apple", "ready"),
            ("changed.txt", b"old", b"new words", "embedding"),
            ("bad.txt", None, b"\x00", "failed"),
        ):
            document_id = document_id_of(TENANT, LIBRARY, name)
            hashes = [hashlib.sha256(data).hexdigest() if data else None for data in (active, pending)]
            db.execute(
                "INSERT INTO documents VALUES (?,?,?,?,'text/plain',?,?,?,?,NULL,NULL,1,1.0,2.0)",
                (document_id, TENANT, LIBRARY, name, hashes[1], hashes[0], len(pending), state),
            )
            for content_hash, data in {hashes[0]: active, hashes[1]: pending}.items():
                if data is not None:
                    db.execute("INSERT INTO contents VALUES (?,?,?)", (document_id, content_hash, data))
            if active is not None:
                db.execute("INSERT INTO texts VALUES (?,'[]',?)", (document_id, active.decode()))
                db.execute(
                    "INSERT INTO chunks(tenant, library, document_id, content_hash, ordinal, start, stop,"
                    " text, vector) VALUES (?,?,?,?,0,0,1,?,?)",
                    (TENANT, LIBRARY, document_id, hashes[0], active.decode(), bytes(32)),
                )
                db.execute(
                    "INSERT INTO ops(kind, document_id, content_hash, at_s) VALUES ('put',?,?,1.0)",
                    (document_id, hashes[0]),
                )
        db.execute("INSERT INTO meta VALUES ('index_version', 'hash-c180-o20-m2000')")
        db.commit()


def test_every_document_of_schema_1_is_taken_over_and_embedded_anew(tmp_path: Path) -> None:
    _version_1(tmp_path)
    with opened(tmp_path) as store:
        found = store.documents(None, TENANT)
        assert [document.name for document in found] == ["bad.txt", "changed.txt", "ready.txt"]
        assert {document.state for document in found} == {DocumentState.QUEUED}
        assert {document.created_s for document in found} == {1.0}
        assert store.seq() == 2
        assert store.content(document_id_of(TENANT, LIBRARY, "changed.txt"), TENANT) == b"new words"
        while (work := store.claim()) is not None:
            assert finish(store, work)
        assert seen(store) == {"bad.txt": ["\x00"], "changed.txt": ["new", "words"], "ready.txt": ["apple"]}
        assert store.seq() == 5
    with opened(tmp_path) as store:  # Now a file of today.
        assert len(seen(store)) == 3


def test_upgrade_that_is_interrupted_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _version_1(tmp_path)

    def torn(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("retrieval.truth.schema.create", torn)
        with pytest.raises(Exception, match="disk I/O error"):
            Store(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM chunks").fetchone() == (2,)
    with opened(tmp_path) as store:
        assert len(store.documents(None, TENANT)) == 3


def test_terms_of_schema_2_are_taken_out_of_their_full_text_index(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upsert(store, ("1", "apple apple pear"), ("2", "東京 block_size"))
        number = store.version().number
        before = seen(store)
        with store.snapshot() as snapshot:
            kept = snapshot.delta_terms(number, 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3", isolation_level=None)) as db:
        db.execute(
            f"CREATE VIRTUAL TABLE fts_{number} USING fts5(terms, columnsize=0,"
            " tokenize=\"ascii tokenchars '_-.:/@#+$%&'\")"
        )
        db.execute(f"CREATE VIRTUAL TABLE fts_terms_{number} USING fts5vocab(fts_{number}, 'instance')")
        db.executemany(f"INSERT INTO fts_{number}(rowid, terms) VALUES (?,?)", kept)
        db.execute(f"DROP TABLE terms_{number}")
        db.execute("PRAGMA user_version=2")
    with opened(tmp_path) as store:
        assert seen(store) == before
        with store.snapshot() as snapshot:
            assert snapshot.delta_terms(number, 0) == kept
            assert postings(snapshot, number, ["appl"]) == {"appl": [(1, 2)]}
    assert broken_rules(tmp_path) == []
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name GLOB 'fts_*'").fetchone() == (0,)
