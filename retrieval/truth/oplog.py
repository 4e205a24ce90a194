"""The log of changes, and how a replica follows it.

A batch carries, for the log's next stretch, the latest state of every document it names. Applying one twice
changes nothing, and applying all of them in order ends in the same documents. Log positions are the
primary's; row ids are the replica's own, so that they ascend in the order it took changes up, as an index
expects.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.lexical import terms_of
from retrieval.truth.metadata import parsed
from retrieval.truth.version_tables import create_tables, drop_tables, remove_documents, stored_version
from retrieval.types import MetadataValue

ALL_VERSIONS = 0
"""Version of an op that concerns the rows of every version."""

_BATCH_BYTES = 16 * 1024 * 1024
"""Bytes of documents in a batch; with text, chunks and vectors it is several times as large."""

_DOCUMENT_COLUMNS = (
    "document_id, tenant, library, name, kind, media_type, metadata, content_hash, active_hash, num_bytes,"
    " state, error, num_pages, created_s, updated_s"
)

_COLUMN_NAMES = [name.strip() for name in _DOCUMENT_COLUMNS.split(",")]

Op = tuple[int, int | None, str, str, str, float]
"""seq, version number, kind, document id, content hash, Unix time."""


@dataclass(frozen=True, slots=True)
class HeldDocument:
    """What one version holds of a document."""

    version_id: str
    """The version."""
    content_hash: str
    """The bytes its chunks are of."""
    error: str | None
    """Why it has none, if it could not be cut or embedded."""
    chunks: list[tuple[int, int, int, int | None, str, bytes]]
    """ordinal, start, stop, page, text, vector as stored."""
    token_codes: list[bytes]
    """One a chunk, or empty."""


@dataclass(frozen=True, slots=True)
class WholeDocument:
    """Everything a shard knows of a document, as plain values."""

    row: tuple[object, ...]
    """Its row of `documents`."""
    contents: list[tuple[str, bytes]]
    """Content hash and bytes."""
    text: tuple[str, str] | None
    """JSON of its page starts, and its text."""
    held: list[HeldDocument]
    """By version."""

    @property
    def document_id(self) -> str:
        """Return its id."""
        return str(self.row[0])

    @property
    def content_hash(self) -> str:
        """Return the hash of the bytes accepted last."""
        return str(self.row[_COLUMN_NAMES.index("content_hash")])

    @property
    def metadata(self) -> dict[str, MetadataValue]:
        """Return its own fields."""
        return parsed(str(self.row[_COLUMN_NAMES.index("metadata")]))


@dataclass(frozen=True, slots=True)
class Batch:
    """A stretch of the log with the documents it changed."""

    after_seq: int
    """The log position it begins after."""
    seq: int
    """The log position it leads to; equal to `after_seq` when there is nothing new."""
    ops: list[Op]
    """The stretch."""
    documents: list[WholeDocument]
    """Latest state of the documents it names; one that is gone is missing here."""
    versions: list[tuple[int, str, str, str, float]]
    """All rows of `versions`."""
    aliases: list[tuple[str, str]]
    """All rows of `aliases`."""
    fields: list[tuple[str, str]]
    """All rows of `fields`."""


def log(db: sqlite3.Connection, kind: str, documents: Iterable[tuple[str, str]], version: int | None) -> int:
    """Append one op a document, (id, content hash), and return the log's last position."""
    now = time.time()
    db.executemany(
        "INSERT INTO ops(version, kind, document_id, content_hash, at_s) VALUES (?,?,?,?,?)",
        ((version, kind, document_id, content_hash, now) for document_id, content_hash in documents),
    )
    return last_seq(db)


def last_seq(db: sqlite3.Connection) -> int:
    """Return the log's last position."""
    return db.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()[0]


def seq_of(path: Path) -> int:
    """Return the last log position of a copy that nobody writes to."""
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        return last_seq(db)


def read_batch(db: sqlite3.Connection, after_seq: int, limit: int) -> Batch:
    """Return the next ops after a log position with everything a replica needs.

    At most `limit` ops come, and fewer where their documents are large; one always does if there is one.
    """
    ops: list[Op] = [
        tuple(row)
        for row in db.execute("SELECT * FROM ops WHERE seq>? ORDER BY seq LIMIT ?", (after_seq, limit))
    ]
    num_bytes, names = 0, dict[str, None]()
    for position, op in enumerate(ops):
        if op[3] not in names:
            size = db.execute("SELECT num_bytes FROM documents WHERE document_id=?", (op[3],)).fetchone()
            num_bytes += 0 if size is None else size[0]
            if names and num_bytes > _BATCH_BYTES:
                del ops[position:]
                break
            names[op[3]] = None
    return Batch(
        after_seq,
        ops[-1][0] if ops else after_seq,
        ops,
        read_documents(db, list(names)),
        _tuples(db, "SELECT number, version_id, spec, state, made_s FROM versions ORDER BY number"),
        _tuples(db, "SELECT name, version_id FROM aliases"),
        _tuples(db, "SELECT name, type FROM fields"),
    )


def read_documents(db: sqlite3.Connection, document_ids: Sequence[str]) -> list[WholeDocument]:
    """Return everything of documents, in order; those that are not here are left out."""
    versions = [tuple(row) for row in db.execute("SELECT version_id, number FROM versions ORDER BY number")]
    found = []
    for document_id in document_ids:
        row = db.execute(
            f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE document_id=?", (document_id,)
        ).fetchone()
        if row is not None:
            text = db.execute(
                "SELECT page_starts, text FROM texts WHERE document_id=?", (document_id,)
            ).fetchone()
            contents = "SELECT content_hash, data FROM contents WHERE document_id=?"
            found.append(
                WholeDocument(
                    tuple(row),
                    _tuples(db, contents, document_id),
                    tuple(text) if text else None,
                    [held for name, number in versions for held in _held(db, name, number, document_id)],
                )
            )
    return found


def apply_batch(db: sqlite3.Connection, batch: Batch) -> int:
    """Take up a batch, unless it was taken up before; return the log's last position.

    Raises:
        ValueError: The batch begins after this log's end: one before it is missing.
    """
    known = last_seq(db)
    if batch.after_seq > known:
        raise ValueError(
            f"the batch begins after log position {batch.after_seq:,}, this log ends at {known:,}"
        )
    _follow_versions(db, batch)
    ops = [op for op in batch.ops if op[0] > known]
    if ops:
        write_documents(db, list(dict.fromkeys(op[3] for op in ops)), batch.documents)
        db.executemany("INSERT INTO ops VALUES (?,?,?,?,?,?)", ops)
    return last_seq(db)


def write_documents(
    db: sqlite3.Connection, document_ids: Sequence[str], documents: Sequence[WholeDocument]
) -> None:
    """Put documents in place of what is here under `document_ids`; those without one are removed."""
    remove(db, document_ids)
    wanted = set(document_ids)
    numbers = dict(_tuples(db, "SELECT version_id, number FROM versions"))
    for document in documents:
        if document.document_id not in wanted:
            continue
        marks = ",".join("?" * len(document.row))
        db.execute(f"INSERT INTO documents({_DOCUMENT_COLUMNS}) VALUES ({marks})", document.row)
        db.executemany(
            "INSERT INTO contents VALUES (?,?,?)",
            ((document.document_id, *content) for content in document.contents),
        )
        if document.text is not None:
            db.execute("INSERT INTO texts VALUES (?,?,?)", (document.document_id, *document.text))
        for held in document.held:
            if held.version_id in numbers:
                _write_held(db, numbers[held.version_id], document.document_id, held)


def remove(db: sqlite3.Connection, document_ids: Sequence[str]) -> None:
    """Remove documents from every table."""
    for row in db.execute("SELECT number FROM versions").fetchall():
        remove_documents(db, row[0], document_ids)
    for table in ("texts", "contents", "documents"):
        db.execute(
            f"DELETE FROM {table} WHERE document_id IN (SELECT value FROM json_each(?))",
            (json.dumps(document_ids),),
        )


def _held(db: sqlite3.Connection, version_id: str, number: int, document_id: str) -> list[HeldDocument]:
    row = db.execute(
        f"SELECT content_hash, error FROM held_{number} WHERE document_id=?", (document_id,)
    ).fetchone()
    if row is None:
        return []
    chunks = _tuples(
        db,
        f"SELECT ordinal, start, stop, page, text, vector FROM chunks_{number}"
        " WHERE document_id=? ORDER BY ordinal",
        document_id,
    )
    codes = db.execute(
        f"SELECT codes FROM chunks_{number} JOIN tokens_{number} USING (row_id)"
        " WHERE document_id=? ORDER BY ordinal",
        (document_id,),
    )
    return [HeldDocument(version_id, row["content_hash"], row["error"], chunks, [code[0] for code in codes])]


def _write_held(db: sqlite3.Connection, number: int, document_id: str, held: HeldDocument) -> None:
    for position, (ordinal, start, stop, page, text, vector) in enumerate(held.chunks):
        terms = terms_of(text)
        row_id = db.execute(
            f"INSERT INTO chunks_{number}(document_id, content_hash, ordinal, start, stop, page, num_terms,"
            " text, vector) VALUES (?,?,?,?,?,?,?,?,?)",
            (document_id, held.content_hash, ordinal, start, stop, page, len(terms), text, vector),
        ).lastrowid
        db.execute(f"INSERT INTO terms_{number} VALUES (?,?)", (row_id, " ".join(terms)))
        if held.token_codes:
            db.execute(f"INSERT INTO tokens_{number} VALUES (?,?)", (row_id, held.token_codes[position]))
    db.execute(
        f"INSERT INTO held_{number} VALUES (?,?,?,?)",
        (document_id, held.content_hash, len(held.chunks), held.error),
    )


def _follow_versions(db: sqlite3.Connection, batch: Batch) -> None:
    """Have the versions, aliases and fields of the primary, under its numbers."""
    here = {row["number"]: stored_version(row) for row in db.execute("SELECT * FROM versions").fetchall()}
    there = {version[0]: version for version in batch.versions}
    for number, version in here.items():
        if number not in there or there[number][1] != version.version_id:
            drop_tables(db, number)
            db.execute("DELETE FROM versions WHERE number=?", (number,))
            del version
    kept = {row[0] for row in db.execute("SELECT number FROM versions").fetchall()}
    for number, values in there.items():
        if number not in kept:
            create_tables(db, number)
            db.execute("INSERT INTO versions VALUES (?,?,?,?,?)", values)
        elif here[number].state != values[3]:
            db.execute("UPDATE versions SET state=? WHERE number=?", (values[3], number))
    if sorted(_tuples(db, "SELECT name, version_id FROM aliases")) != sorted(batch.aliases):
        db.execute("DELETE FROM aliases")
        db.executemany("INSERT INTO aliases VALUES (?,?)", batch.aliases)
    db.executemany("INSERT OR IGNORE INTO fields VALUES (?,?)", batch.fields)


def _tuples(db: sqlite3.Connection, sql: str, *values: object) -> list[tuple]:
    return [tuple(row) for row in db.execute(sql, values)]
