"""Documents read outside the shard: stored whole in one transaction, once, in the right version."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.errors import InvalidMetadata
from retrieval.ingestion.taking_in import ReadDocument, take_in
from retrieval.truth.store import Store
from retrieval.types import Document, DocumentState, DocumentText, Metadata
from tests.small_store import LIBRARY, TENANT, embedded, opened, put


def read(name: str, text: str) -> ReadDocument:
    return ReadDocument(name, text.encode(), "text/plain", DocumentText(text), embedded(text))


def taken(
    store: Store, *documents: ReadDocument, version: str | None = None, metadata: Metadata | None = None
) -> list[Document]:
    return take_in(
        store,
        documents,
        version or store.version().version_id,
        library=LIBRARY,
        tenant=TENANT,
        metadata=metadata,
    )


def test_a_read_document_is_ready_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (first,) = taken(store, read("a.txt", "one two three"), metadata={"year": 1901})
        assert (first.state, first.num_chunks, dict(first.metadata)) == (
            DocumentState.READY, 3, {"year": 1901},
        )  # fmt: skip
        assert store.text(first.document_id, TENANT).text == "one two three"
        assert store.content(first.document_id, TENANT) == b"one two three"
        seq = store.seq()
        assert taken(store, read("a.txt", "one two three")) == [first]
        assert store.seq() == seq
        assert store.claim() is None


def test_changed_bytes_replace_what_answered(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "old words here")
        (document,) = taken(store, read("a.txt", "new"))
        assert (document.state, document.num_chunks) == (DocumentState.READY, 1)
        with store.snapshot() as snapshot:
            texts = [block.row_ids for block in snapshot.blocks(store.version().number)]
        assert sum(map(len, texts)) == 1


def test_a_failure_carries_its_cause_and_its_bytes_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (document,) = taken(store, ReadDocument("a.pdf", b"%PDF-broken", error="no text in 'a.pdf'"))
        assert (document.state, document.error) == (DocumentState.FAILED, "no text in 'a.pdf'")
        assert store.content(document.document_id, TENANT) == b"%PDF-broken"
        (again,) = taken(store, read("a.pdf", "%PDF-broken"))
        assert (again.state, again.error) == (DocumentState.READY, None)


def test_a_document_without_vectors_is_left_to_the_queue(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (document,) = taken(store, ReadDocument("a.txt", b"one"))
        assert document.state is DocumentState.QUEUED
        work = store.claim()
        assert work is not None
        assert work.data == b"one"


def test_chunks_of_another_version_are_not_taken_in(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (document,) = taken(store, read("a.txt", "one two"), version="switched-away")
        assert (document.state, document.num_chunks) == (DocumentState.QUEUED, 0)


def test_one_that_cannot_be_stored_leaves_nothing_of_its_block(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        taken(store, read("a.txt", "one"), metadata={"year": 1901})
        with pytest.raises(InvalidMetadata):
            taken(store, read("b.txt", "two"), read("c.txt", "three"), metadata={"year": "1902"})
        assert [document.name for document in store.documents(LIBRARY, TENANT)] == ["a.txt"]


def test_what_the_queue_works_on_may_be_taken_in_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"one two")
        work = store.claim()
        assert work is not None
        (document,) = taken(store, read("a.txt", "one two"))
        assert document.state is DocumentState.READY
        assert not store.advance(work, DocumentState.QUEUED)
        assert not store.is_current(work)
