"""The vector index against NumPy: exact under filters, deletes and compaction."""

from __future__ import annotations

import random

import faiss
import numpy as np
import pytest

from retrieval.index import BLAS_THRESHOLD, VectorIndex
from retrieval.snapshot import ChunkFilter, DocumentVectors

DIM = 16


class Oracle:
    """The same operations on plain arrays."""

    def __init__(self) -> None:
        self.documents: dict[str, DocumentVectors] = {}

    def search(self, query_D: np.ndarray, k: int, only: ChunkFilter) -> list[tuple[float, int]]:
        scored = [
            (float(vector_D @ query_D), row_id)
            for document in self.documents.values()
            if document.tenant == only.tenant
            and only.library in (None, document.library)
            and (not only.document_ids or document.document_id in only.document_ids)
            for row_id, vector_D in zip(document.row_ids, document.vectors_ND, strict=True)
        ]
        return sorted(scored, reverse=True)[:k]


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors_ND = rng.standard_normal((count, DIM)).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.mark.parametrize("gather_max_rows", [0, 40, 1_000_000])
def test_random_changes_and_filters_agree_with_numpy(gather_max_rows: int) -> None:
    rng, choose = np.random.default_rng(1), random.Random(1)
    index, oracle, next_row = VectorIndex(gather_max_rows), Oracle(), 1
    for _ in range(250):
        name = f"d{choose.randrange(30)}"
        if choose.random() < 0.3:
            index.remove(name)
            oracle.documents.pop(name, None)
        else:
            count = choose.randrange(1, 60)
            rows = list(range(next_row, next_row + count))
            next_row += count
            number = int(name[1:])
            document = DocumentVectors(
                name,
                f"t{number % 3}",
                f"l{number % 2}",
                rows,
                [f"{name}:{row}" for row in rows],
                _unit(rng, count),
            )
            index.put([document])
            oracle.documents[name] = document
        only = ChunkFilter(
            f"t{choose.randrange(4)}",
            choose.choice([None, "l0", "l1"]),
            choose.choice([(), (name,), ("d0", "d3", "d6", "gone")]),
        )
        queries_QD = _unit(rng, 3)
        for query_D, found in zip(queries_QD, index.search(queries_QD, 7, only), strict=True):
            expected = oracle.search(query_D, 7, only)
            assert list(found) == [row_id for _, row_id in expected]
            np.testing.assert_allclose(list(found.values()), [score for score, _ in expected], atol=1e-5)
        assert len(index) == sum(len(document.row_ids) for document in oracle.documents.values())


def test_removed_rows_leave_memory() -> None:
    rng = np.random.default_rng(0)
    index = VectorIndex(10)
    for number in range(4):
        rows = list(range(number * 1000, number * 1000 + 1000))
        index.put(
            [DocumentVectors(str(number), "t", "l", rows, [str(row) for row in rows], _unit(rng, 1000))]
        )
    for number in range(3):
        index.remove(str(number))
    assert index._flat.ntotal < 2500
    (found,) = index.search(_unit(rng, 1), 5000, ChunkFilter("t"))
    assert set(found) == set(range(3000, 4000))


def test_blas_threshold_stays_set() -> None:
    VectorIndex(10)
    assert faiss.cvar.distance_compute_blas_threshold == BLAS_THRESHOLD == 2000


def test_other_dimensions_are_refused_not_asserted() -> None:
    index = VectorIndex(10)
    index.put([DocumentVectors("a", "t", "l", [1], ["a:1"], np.ones((1, DIM), np.float32))])
    with pytest.raises(ValueError, match="8 dimensions, the index has 16"):
        index.put([DocumentVectors("b", "t", "l", [2], ["b:2"], np.ones((1, 8), np.float32))])
    with pytest.raises(ValueError, match="16 dimensions"):
        index.search(np.ones((1, 8), np.float32), 1, ChunkFilter("t"))


def test_empty_index_and_empty_filter_find_nothing() -> None:
    index = VectorIndex(10)
    query_QD = np.ones((2, DIM), np.float32)
    assert index.search(query_QD, 5, ChunkFilter("t")) == [{}, {}]
    index.put([DocumentVectors("a", "t", "l", [1], ["a:1"], np.ones((1, DIM), np.float32))])
    assert index.search(query_QD, 5, ChunkFilter("u")) == [{}, {}]
