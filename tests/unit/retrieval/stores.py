"""What the tests of the store share: a small version, documents of one chunk a word, what an index sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrieval.records import Vectors
from retrieval.store import Embedded, Store, Work
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
