"""What the tests of the store share: a small version, documents of one chunk a word, what an index sees."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retrieval.truth.records import Vectors
from retrieval.truth.snapshot import Snapshot
from retrieval.truth.store import Embedded, Store, Work
from retrieval.types import Chunk, Document, DocumentText, Metadata, Record
from retrieval.versions import VersionSpec

DIM = 8
SPEC = VersionSpec("packaged", "hash8", DIM, 180, 20, 2000)
TENANT, LIBRARY = "t", "l"


def vector(word: str, dim: int = DIM) -> np.ndarray:
    vector_D = np.random.default_rng(sum(word.encode())).standard_normal(dim).astype(np.float32)
    return vector_D / np.linalg.norm(vector_D)


@contextlib.contextmanager
def opened(folder: Path, spec: VersionSpec = SPEC) -> Iterator[Store]:
    """Yield a store with one active version."""
    store = Store(folder)
    try:
        store.configure(spec)
        yield store
    finally:
        store.close()


def embedded(text: str, dim: int = DIM) -> Embedded:
    """Return one chunk a word."""
    chunks, at = [], 0
    for ordinal, word in enumerate(text.split(" ")):
        chunks.append(Chunk(ordinal, word, at, at + len(word)))
        at += len(word) + 1
    return Embedded(chunks, np.stack([vector(chunk.text, dim) for chunk in chunks]))


def finish(store: Store, work: Work) -> bool:
    text = work.data.decode()
    return store.finish(work, "text/plain", DocumentText(text), embedded(text))


def put(store: Store, name: str, text: str, metadata: Metadata | None = None) -> Document:
    """Add a document and take it to ready."""
    document = store.add(TENANT, LIBRARY, name, "text/plain", text.encode(), metadata)
    work = store.claim()
    assert work is not None
    assert finish(store, work)
    return document


def upsert(store: Store, *texts: tuple[str, str], **metadata: str | float) -> int:
    """Upsert records of (name, text) into the active version."""
    records = [Record(name, text, metadata=metadata) for name, text in texts]
    vectors_ND = np.stack([vector(text) for _, text in texts])
    return store.upsert(TENANT, LIBRARY, records, {store.version().number: Vectors(vectors_ND)})


def broken_rules(folder: Path) -> list[str]:
    """Return what is wrong inside a shard's file, read past the store: empty when it is whole."""
    with contextlib.closing(sqlite3.connect(folder / "shard.sqlite3")) as db:
        found = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        versions = [row[0] for row in db.execute("SELECT number FROM versions")]
        if db.execute("SELECT count(*) FROM versions WHERE state='active'").fetchone() != (1,):
            found.append("not exactly one version is active")
        rules = {"documents that answer without bytes or text": (
            "SELECT count(*) FROM documents AS d WHERE kind='file' AND active_hash IS NOT NULL"
            " AND NOT (EXISTS (SELECT 1 FROM texts AS t WHERE t.document_id=d.document_id)"
            " AND EXISTS (SELECT 1 FROM contents AS c WHERE c.document_id=d.document_id"
            " AND c.content_hash=d.active_hash))"
        ), "texts or bytes of no document": (
            "SELECT (SELECT count(*) FROM texts WHERE document_id NOT IN (SELECT document_id FROM documents))"
            " + (SELECT count(*) FROM contents WHERE document_id NOT IN (SELECT document_id FROM documents))"
        )}  # fmt: skip
        for n in versions:
            rules |= {
                f"chunks_{n} without their document held": f"SELECT count(*) FROM chunks_{n} AS c"
                f" LEFT JOIN held_{n} AS h USING (document_id) WHERE h.content_hash IS NOT c.content_hash",
                f"held_{n} with another number of chunks": f"SELECT count(*) FROM held_{n} AS h WHERE"
                f" num_chunks<>(SELECT count(*) FROM chunks_{n} AS c WHERE c.document_id=h.document_id)",
                f"held_{n} of no document": f"SELECT count(*) FROM held_{n} WHERE document_id NOT IN"
                " (SELECT document_id FROM documents)",
                f"terms_{n} of no chunk": f"SELECT count(*) FROM terms_{n} WHERE row_id NOT IN"
                f" (SELECT row_id FROM chunks_{n})",
                f"tokens_{n} of no chunk": f"SELECT count(*) FROM tokens_{n} WHERE row_id NOT IN"
                f" (SELECT row_id FROM chunks_{n})",
            }
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
        stray = [name for name in tables if name.startswith("chunks_") and int(name[7:]) not in versions]
        found += [f"table {name} of no version" for name in stray]
        return found + [rule for rule, sql in rules.items() if db.execute(sql).fetchone()[0]]


def postings(snapshot: Snapshot, number: int, terms: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """Return (row id, occurrences) by term, of rows whose terms the store still keeps."""
    rows = [(row_id, words.split()) for row_id, words in snapshot.delta_terms(number, 0)]
    found = {term: [(row_id, words.count(term)) for row_id, words in rows if term in words] for term in terms}
    return {term: rows for term, rows in found.items() if rows}


def seen(store: Store, version: str | None = None) -> dict[str, list[str]]:
    """Return the texts of each document's chunks by name, read as an index and a search read them."""
    number = store.version(version).number
    with store.snapshot() as snapshot:
        found = {}
        for document in snapshot.changes(number, 0).documents:
            ids = [f"{document.document_id}:{document.content_hash[:12]}:{i}" for i in document.ordinals]
            passages = snapshot.passages(number, ids, document.tenant)
            found[document.name] = [passages[chunk_id].text for chunk_id in ids]
            for chunk_id, vector_D in snapshot.vectors(number, ids).items():
                assert np.allclose(vector_D, document.vectors_ND[ids.index(chunk_id)], atol=1e-6), (
                    "a vector read by id differs from the one an index is given"
                )
        return found
