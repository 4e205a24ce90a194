"""The tables of one index version: its chunks, token codes and terms, and which documents it holds.

Every version has tables of its own, so that dropping one drops tables, and no query can mix two. Terms are
kept, as one string of stemmed terms a row, only until a lexical base segment holds the row. They are a plain
table: as an FTS5 index they were 8 of the 20 pages that replacing a record wrote, and slower to look up than
what an index makes of them in memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from retrieval.graph.schema import drop_graph
from retrieval.lexical import terms_of
from retrieval.types import Chunk
from retrieval.vectors import codecs
from retrieval.versions import VersionSpec, VersionState


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """An index version as its shard knows it."""

    number: int
    """Names its tables; never used again."""
    version_id: str
    """Its name, from its spec."""
    spec: VersionSpec
    """What makes it."""
    state: VersionState
    """Where it stands."""
    made_s: float
    """Unix time it was begun."""

    @property
    def dim(self) -> int:
        """Return the numbers of a vector it keeps."""
        return self.spec.dim or self.spec.model_dim


@dataclass(frozen=True, slots=True)
class Embedded:
    """The chunks of one document and what a version's embedder made of them."""

    chunks: Sequence[Chunk]
    """In order, ordinals from 0."""
    vectors_NM: np.ndarray
    """float32[len(chunks), model_dim] as the embedder made them."""
    token_codes: Sequence[bytes] = ()
    """One a chunk where the version keeps token vectors, else empty."""

    def split(self, counts: Sequence[int]) -> list[Embedded]:
        """Return the parts of documents that were embedded together, by their numbers of chunks."""
        parts, start = [], 0
        for count in counts:
            here = slice(start, start + count)
            parts.append(Embedded(self.chunks[here], self.vectors_NM[here], self.token_codes[here]))
            start += count
        return parts


@dataclass(frozen=True, slots=True)
class Rows:
    """Chunks in the form the tables keep; made before the write lock is taken."""

    chunks: Sequence[Chunk]
    """The chunks."""
    vectors_NB: np.ndarray
    """uint8[len(chunks), bytes of a vector]."""
    terms: list[list[str]]
    """Stemmed terms of each chunk."""
    token_codes: Sequence[bytes]
    """One a chunk, or empty."""


def rows_of(spec: VersionSpec, embedded: Embedded) -> Rows:
    """Return what the tables keep of chunks.

    Raises:
        ValueError: A vector has another dimension than the version's embedder makes, is not finite, or zero.
    """
    vectors_ND = codecs.unit(embedded.vectors_NM, spec.model_dim, spec.dim)
    return Rows(
        embedded.chunks,
        codecs.encode(vectors_ND, spec.vectors),
        [terms_of(chunk.text) for chunk in embedded.chunks],
        embedded.token_codes if spec.tokens != "none" else (),
    )


def spec_text(spec: VersionSpec) -> str:
    """Return a spec as JSON."""
    return json.dumps(asdict(spec), sort_keys=True)


@lru_cache(maxsize=64)
def spec_of(text: str) -> VersionSpec:
    """Return a spec from its JSON."""
    return VersionSpec(**json.loads(text))


def stored_version(row: sqlite3.Row) -> StoredVersion:
    """Return a version from its row of `versions`."""
    return StoredVersion(
        row["number"], row["version_id"], spec_of(row["spec"]), VersionState(row["state"]), row["made_s"]
    )


def create_tables(db: sqlite3.Connection, number: int) -> None:
    """Create the tables of a version."""
    db.execute(
        f"CREATE TABLE chunks_{number}(row_id INTEGER PRIMARY KEY AUTOINCREMENT, document_id TEXT NOT NULL,"
        " content_hash TEXT NOT NULL, ordinal INTEGER NOT NULL, start INTEGER NOT NULL,"
        " stop INTEGER NOT NULL, page INTEGER, num_terms INTEGER NOT NULL, text TEXT NOT NULL,"
        " vector BLOB NOT NULL) STRICT"
    )
    db.execute(f"CREATE UNIQUE INDEX chunks_{number}_by_document ON chunks_{number}(document_id, ordinal)")
    db.execute(f"CREATE TABLE tokens_{number}(row_id INTEGER PRIMARY KEY, codes BLOB NOT NULL) STRICT")
    db.execute(
        f"CREATE TABLE held_{number}(document_id TEXT PRIMARY KEY, content_hash TEXT NOT NULL,"
        " num_chunks INTEGER NOT NULL, error TEXT) STRICT, WITHOUT ROWID"
    )
    db.execute(f"CREATE TABLE terms_{number}(row_id INTEGER PRIMARY KEY, terms TEXT NOT NULL) STRICT")


def drop_tables(db: sqlite3.Connection, number: int) -> None:
    """Drop the tables of a version, its graph's too."""
    drop_graph(db, number)
    for name in ("terms", "tokens", "held", "chunks"):
        db.execute(f"DROP TABLE IF EXISTS {name}_{number}")


def insert_rows(
    db: sqlite3.Connection, number: int, owners: Iterable[tuple[str, str]], rows: Sequence[Rows]
) -> None:
    """Insert the chunks of documents that have none in this version.

    Args:
        db: A connection inside a transaction.
        number: The version.
        owners: (document id, content hash) of each of `rows`.
        rows: The chunks of each document.
    """
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name=?", (f"chunks_{number}",)).fetchone()
    row_id = found[0] if found else 0
    chunks, terms, tokens, held = [], [], [], []
    for (document_id, content_hash), document in zip(owners, rows, strict=True):
        width = document.vectors_NB.shape[1]
        codes = document.vectors_NB.tobytes()
        held.append((document_id, content_hash, len(document.chunks)))
        for position, chunk in enumerate(document.chunks):
            row_id += 1
            vector = codes[position * width : (position + 1) * width]
            words = document.terms[position]
            chunks.append(
                (row_id, document_id, content_hash, chunk.ordinal, chunk.start, chunk.end, chunk.page,
                 len(words), chunk.text, vector)
            )  # fmt: skip
            terms.append((row_id, " ".join(words)))
            if document.token_codes:
                tokens.append((row_id, document.token_codes[position]))
    db.executemany(f"INSERT INTO chunks_{number} VALUES (?,?,?,?,?,?,?,?,?,?)", chunks)
    db.executemany(f"INSERT INTO terms_{number} VALUES (?,?)", terms)
    db.executemany(f"INSERT INTO tokens_{number} VALUES (?,?)", tokens)
    db.executemany(f"INSERT OR REPLACE INTO held_{number} VALUES (?,?,?,NULL)", held)


def remove_documents(db: sqlite3.Connection, number: int, document_ids: Sequence[str]) -> None:
    """Remove everything a version holds of documents."""
    remove_chunks(db, number, document_ids)
    db.execute(
        f"DELETE FROM held_{number} WHERE document_id IN (SELECT value FROM json_each(?))",
        (json.dumps(document_ids),),
    )


def remove_chunks(db: sqlite3.Connection, number: int, document_ids: Sequence[str]) -> None:
    """Remove the chunks of documents, whose row in `held` the caller replaces."""
    found = db.execute(
        f"SELECT row_id FROM json_each(?) JOIN chunks_{number} ON document_id=value",
        (json.dumps(document_ids),),
    ).fetchall()
    row_ids = [(row[0],) for row in found]
    for name in ("terms", "tokens", "chunks"):
        db.executemany(f"DELETE FROM {name}_{number} WHERE row_id=?", row_ids)


def prune_terms(db: sqlite3.Connection, number: int, up_to_row_id: int, max_rows: int) -> bool:
    """Forget the terms of rows that a base segment holds, at most `max_rows`; return whether all are gone."""
    pruned = db.execute(
        f"DELETE FROM terms_{number} WHERE row_id IN"
        f" (SELECT row_id FROM terms_{number} WHERE row_id<=? ORDER BY row_id LIMIT ?)",
        (up_to_row_id, max_rows),
    )
    return pruned.rowcount < max_rows
