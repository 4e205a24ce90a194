"""Records: one transaction, equal names replaced, bad ones refused whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_store import DIM, LIBRARY, SPEC, TENANT, opened, postings, put, seen, upsert, vector

from retrieval.errors import InvalidDocument, InvalidMetadata, InvalidVector
from retrieval.truth.records import Vectors
from retrieval.truth.store import Store, document_id_of
from retrieval.types import DocumentState, Record


def _write(store: Store, *records: Record, vectors_ND: np.ndarray | None = None) -> int:
    if vectors_ND is None:
        vectors_ND = np.stack([vector(record.text) for record in records])
    return store.upsert(TENANT, LIBRARY, records, {store.version().number: Vectors(vectors_ND)})


def test_records_are_documents_of_one_chunk(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        seq = upsert(store, ("1", "an apple"), ("2", "a pear"), year=1990)
        assert seq == store.seq() == 2
        assert seen(store) == {"1": ["an apple"], "2": ["a pear"]}
        document_id = document_id_of(TENANT, LIBRARY, "1")
        document = store.document(document_id, TENANT)
        assert (document.state, document.num_chunks, document.num_bytes) == (DocumentState.READY, 1, 8)
        assert document.metadata == {"year": 1990}
        assert store.text(document_id, TENANT).text == "an apple"
        assert store.content(document_id, TENANT) == b"an apple"
        assert store.libraries(TENANT)[0].num_chunks == 2


def test_equal_names_are_replaced_and_rows_never_reused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upsert(store, ("1", "apple"), ("2", "pear"))
        number, seq = store.version().number, store.seq()
        upsert(store, ("1", "banana"))
        assert seen(store) == {"1": ["banana"], "2": ["pear"]}
        with store.snapshot() as snapshot:
            (changed,) = snapshot.changes(number, seq).documents
            assert changed.row_ids.tolist() == [3]
            assert postings(snapshot, number, ["appl", "banana"]) == {"banana": [(3, 1)]}
            assert snapshot.delta_stats(number, 0).num_chunks == 2


def test_a_record_replaces_a_file_of_its_name_and_the_other_way_round(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a", "apple pear")
        upsert(store, ("a", "banana"))
        assert seen(store) == {"a": ["banana"]}
        assert store.content(document.document_id, TENANT) == b"banana"
        queued = store.add(TENANT, LIBRARY, "a", "text/plain", b"cherry")
        assert queued.state is DocumentState.QUEUED
        assert store.text(document.document_id, TENANT).text == "banana"  # Answers meanwhile.
        assert store.content(document.document_id, TENANT) == b"banana"
        work = store.claim()
        assert work is not None
        upsert(store, ("a", "dates"))  # The file is no longer wanted.
        assert not store.is_current(work)
        assert store.claim() is None
        put(store, "a", "elder figs")
        assert seen(store) == {"a": ["elder", "figs"]}


def test_deleted_record_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upsert(store, ("1", "apple"), ("2", "pear"))
        store.delete(document_id_of(TENANT, LIBRARY, "1"), TENANT)
        assert seen(store) == {"2": ["pear"]}


@pytest.mark.parametrize(
    ("record", "error", "says"),
    [
        (Record("", "text"), InvalidDocument, "record name is empty"),
        (Record("../b", "text"), InvalidDocument, "points to a folder"),
        (Record("a", " \n"), InvalidDocument, "'a' has no text"),
        (Record("a", "\ud800"), InvalidDocument, "half a character"),
        (Record("good", "again"), InvalidDocument, "two records are named 'good'"),
        (Record("a", "text", metadata={"name": "x"}), InvalidMetadata, "every document has"),
        (Record("a", "text", metadata={"year": "x"}), InvalidMetadata, "'year' holds number"),
    ],
)
def test_one_bad_record_refuses_all(
    tmp_path: Path, record: Record, error: type[Exception], says: str
) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(error, match=says):
            _write(store, Record("good", "text", metadata={"year": 1}), record, vectors_ND=np.ones((2, DIM)))
        assert (seen(store), store.documents(None, TENANT), store.seq()) == ({}, [], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vector_that_is_no_number_is_refused_by_place(tmp_path: Path, bad: float) -> None:
    vectors_ND = np.ones((3, DIM), dtype=np.float32)
    vectors_ND[1, 2] = bad
    with opened(tmp_path) as store:
        with pytest.raises(InvalidVector, match="vector 1 holds NaN or infinity"):
            _write(store, *(Record(str(i), "text") for i in range(3)), vectors_ND=vectors_ND)
        assert seen(store) == {}


def test_vector_of_another_dimension_or_of_length_zero_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(InvalidVector, match="index holds vectors of 8 numbers"):
            _write(store, Record("a", "text"), vectors_ND=np.ones((1, 9)))
        with pytest.raises(InvalidVector, match="length zero"):
            _write(store, Record("a", "text"), vectors_ND=np.zeros((1, DIM)))
        assert seen(store) == {}


def test_a_record_of_a_million_characters_is_kept_whole(tmp_path: Path) -> None:
    text = "apple " * 166_667
    with opened(tmp_path) as store:
        upsert(store, ("long", text))
        assert seen(store) == {"long": [text]}
        number = store.version().number
        with store.snapshot() as snapshot:
            assert postings(snapshot, number, ["appl"]) == {"appl": [(1, 166_667)]}


def test_terms_are_kept_unchanged(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upsert(store, ("1", 'block_size IL-2 naïve Größe 東京 AND NEAR(x) "quoted" x2'))
        number = store.version().number
        with store.snapshot() as snapshot:
            (block,) = snapshot.blocks(number, with_terms=True)
            assert block.terms is not None
            terms = block.terms[0]
            found = postings(snapshot, number, terms)
            assert found == {term: [(1, terms.count(term))] for term in terms}
            assert block.num_terms.tolist() == [len(terms)]


def test_pruned_terms_are_gone_and_later_ones_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upsert(store, *((str(i), "apple") for i in range(700)))
        number = store.version().number
        for up_to, left in ((300, 400), (650, 50), (700, 0)):
            store.prune_terms(number, up_to)
            with store.snapshot() as snapshot:
                found = postings(snapshot, number, ["appl"]).get("appl", [])
            assert [row_id for row_id, _ in found] == list(range(up_to + 1, 701))
            assert len(found) == left
        upsert(store, ("late", "apple"))
        store.delete(document_id_of(TENANT, LIBRARY, "5"), TENANT)  # Its terms are gone already.
        with store.snapshot() as snapshot:
            assert postings(snapshot, number, ["appl"]) == {"appl": [(701, 1)]}


def test_many_rows_are_pruned_in_small_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.truth.store._PRUNE_ROWS", 40)
    with opened(tmp_path) as store:
        upsert(store, *((str(i), "apple") for i in range(300)))
        number = store.version().number
        store.prune_terms(number, 200)
        with store.snapshot() as snapshot:
            found = postings(snapshot, number, ["appl"])["appl"]
        assert [row_id for row_id, _ in found] == list(range(201, 301))


def test_token_codes_come_back_by_chunk(tmp_path: Path) -> None:
    with opened(tmp_path, replace(SPEC, tokens="int8")) as store:
        number = store.version().number
        store.upsert(
            TENANT, LIBRARY, [Record("a", "apple"), Record("b", "pear")],
            {number: Vectors(np.eye(2, DIM), (b"one", b"two"))},
        )  # fmt: skip
        with store.snapshot() as snapshot:
            ids = [
                f"{document.document_id}:{document.content_hash[:12]}:0"
                for document in snapshot.changes(number, 0).documents
            ]
            assert snapshot.token_codes(number, [*ids, "no:such:0"]) == {ids[0]: b"one", ids[1]: b"two"}


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "binary"])
def test_vectors_come_back_as_the_version_keeps_them(tmp_path: Path, codec: str) -> None:
    dim = 4
    with opened(tmp_path, replace(SPEC, vectors=codec, dim=dim)) as store:
        upsert(store, ("1", "apple"))
        with store.snapshot() as snapshot:
            (document,) = snapshot.changes(store.version().number, 0).documents
        kept_D = vector("apple")[:dim] / np.linalg.norm(vector("apple")[:dim])
        floor = {"float32": 0.999999, "float16": 0.99999, "int8": 0.999, "binary": 0.5}[codec]
        assert document.vectors_ND.shape == (1, dim)
        assert float(document.vectors_ND[0] @ kept_D) > floor
