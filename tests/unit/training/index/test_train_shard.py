"""Search is exact, equal in any sharding, and refuses what is too old."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes_index import DIM, QUERIES, TEXTS, spec_of, text_vectors, write_version
from training.errors import IndexNotReady, NumericsError, StalenessViolated
from training.index.search_call import SearchCall
from training.index.sharded_search import LocalShard, ShardedSearch, local_shards, shard_rows
from training.index.top_rows import TopRows
from training.index.train_shard import TrainIndexShard
from training.index.version_rows import DamagedBlocks

VECTORS = text_vectors(TEXTS, "start")
QUERY_VECTORS = text_vectors(QUERIES, "query")


def oracle(scores_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows_QN = np.broadcast_to(np.arange(scores_QN.shape[1]), scores_QN.shape)
    rows_QK = np.lexsort((rows_QN, -scores_QN), axis=1)[:, :k]
    return rows_QK, np.take_along_axis(scores_QN, rows_QK, axis=1)


def call(k: int = 5, **values) -> SearchCall:
    return SearchCall(**{"number": 0, "step": 3, "snapshot_step": 0, "max_staleness": 9, **values}, k=k)


@pytest.fixture
def folder(tmp_path):
    write_version(tmp_path, spec_of(), VECTORS)
    return tmp_path


@pytest.fixture
def shard(folder):
    shard = TrainIndexShard(folder, 0, len(TEXTS))
    shard.load(0)
    return shard


@given(
    scores=st.lists(
        st.lists(st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1.0, 3e38, -3e38, 1e-40]), min_size=9, max_size=9),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 12),
    block=st.integers(1, 9),
)
def test_top_rows_equal_a_stable_sort(scores, k, block):
    scores_QN = np.asarray(scores, dtype=np.float32)
    top = TopRows(len(scores_QN), k)
    for first in range(0, 9, block):
        part_QN = torch.tensor(scores_QN[:, first : first + block])
        top.add(part_QN, torch.arange(first, first + part_QN.shape[1]))
    rows_QK, scores_QK = top.result()
    expected_rows, expected_scores = oracle(scores_QN, k)
    np.testing.assert_array_equal(rows_QK.numpy(), expected_rows)
    np.testing.assert_array_equal(scores_QK.numpy(), expected_scores)


def test_rows_up_to_the_last_that_fits_are_kept():
    top = TopRows(1, 2)
    top.add(torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([2**32 - 1, 2**32 - 2, 0]))
    assert top.result()[0].tolist() == [[2**32 - 2, 2**32 - 1]]


def test_shard_equals_brute_force(shard):
    rows_QK, scores_QK = shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)
    expected_rows, expected_scores = oracle(QUERY_VECTORS @ VECTORS.T, 5)
    np.testing.assert_array_equal(rows_QK, expected_rows)
    np.testing.assert_allclose(scores_QK, expected_scores, rtol=1e-6)
    assert (rows_QK.dtype, scores_QK.dtype) == (np.int64, np.float32)


def test_fewer_rows_than_k_gives_all_of_them(shard):
    rows_QK, _ = shard.search(0, 3, 0, 9, QUERY_VECTORS, 99)
    assert rows_QK.shape == (len(QUERIES), len(TEXTS))
    assert sorted(rows_QK[0]) == list(range(len(TEXTS)))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cuts=st.sets(st.integers(1, len(TEXTS) - 1), max_size=5),
    block_rows=st.integers(3, 60),
    k=st.integers(1, 60),
    coarse=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_any_sharding_returns_the_same_bits(tmp_path, cuts, block_rows, k, coarse, dtype):
    vectors_ND = np.round(VECTORS) if coarse else VECTORS
    queries_QD = np.round(QUERY_VECTORS) if coarse else QUERY_VECTORS
    folder = tmp_path / f"{block_rows}-{coarse}-{dtype}"
    if not folder.exists():
        write_version(folder, spec_of(block_rows=block_rows, dtype=dtype), vectors_ND)
    bounds = [0, *sorted(cuts), len(TEXTS)]
    found = []
    for edges in ([0, len(TEXTS)], bounds):
        shards = [TrainIndexShard(folder, a, b) for a, b in pairwise(edges)]
        search = ShardedSearch([LocalShard(shard, f"shard {i}") for i, shard in enumerate(shards)])
        search.load(0)
        found.append(search.search(call(k, queries_QD=queries_QD)))
    for whole, cut in zip(*found, strict=True):
        np.testing.assert_array_equal(whole.view(np.uint32), cut.view(np.uint32))


def test_search_is_exact_under_the_callers_autocast(shard):
    plain = shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)[1], plain)


@pytest.mark.parametrize(("step", "snapshot_step"), [(10, 0), (-1, 0), (3, 1)])
def test_search_beyond_the_bound_or_of_another_step_is_refused(shard, step, snapshot_step):
    with pytest.raises(StalenessViolated):
        shard.search(0, step, snapshot_step, 9, QUERY_VECTORS, 5)


def test_bound_itself_may_be_searched(shard):
    shard.search(0, 9, 0, 9, QUERY_VECTORS, 5)


def test_absent_version_is_named(shard):
    with pytest.raises(IndexNotReady, match="version 4 is not loaded"):
        shard.search(4, 3, 0, 9, QUERY_VECTORS, 5)


def test_queries_that_are_not_finite_are_refused(shard):
    with pytest.raises(NumericsError, match="query"):
        shard.search(0, 3, 0, 9, np.full((1, DIM), np.nan, np.float32), 5)


@pytest.mark.parametrize(("shape", "k"), [((2, DIM + 1), 5), ((DIM,), 5), ((2, DIM), 0)])
def test_wrong_shapes_are_refused(shard, shape, k):
    with pytest.raises(ValueError, match="at least 1"):
        shard.search(0, 3, 0, 9, np.zeros(shape, np.float32), k)


def test_two_versions_are_resident_and_no_third(folder, shard):
    for number in (1, 2):
        write_version(folder, spec_of(number, step=number), VECTORS)
    shard.load(1)
    with pytest.raises(ValueError, match="at most 2"):
        shard.load(2)
    shard.keep([1])
    shard.load(2)
    assert shard.resident == (1, 2)


def test_version_that_was_replaced_on_disk_is_loaded_anew(folder, shard):
    write_version(folder, spec_of(weights_hash="other"), -VECTORS)
    shard.load(0)
    np.testing.assert_array_equal(
        shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)[0], oracle(-QUERY_VECTORS @ VECTORS.T, 5)[0]
    )


def test_damaged_blocks_of_other_shards_do_not_matter(folder):
    next((folder / "v0").glob("rows-000000042*.npy")).unlink()
    TrainIndexShard(folder, 0, 42).load(0)
    with pytest.raises(DamagedBlocks):
        TrainIndexShard(folder, 40, len(TEXTS)).load(0)


def test_index_of_a_smaller_corpus_is_refused(folder):
    with pytest.raises(IndexNotReady, match="another corpus"):
        TrainIndexShard(folder, 0, len(TEXTS) + 1).load(0)


class Scripted:
    """A shard that answers as told, call by call."""

    name = "shard 1"

    def __init__(self, inner: LocalShard, script: list[object]) -> None:
        self.inner, self.script = inner, script

    def search(self, wanted: SearchCall) -> Future:
        act = self.script.pop(0) if self.script else "answer"
        if isinstance(act, Exception):
            failed: Future = Future()
            failed.set_exception(act)
            return failed
        return self.inner.search(wanted) if act == "answer" else Future()

    def load(self, number: int) -> Future[None]:
        return self.inner.load(number)

    def keep(self, numbers) -> Future[None]:
        return self.inner.keep(numbers)


def two_shards(folder: Path, script: list[object], deadline_s: float = 1.0) -> ShardedSearch:
    left, right = local_shards(folder, len(TEXTS), 7, 2)
    search = ShardedSearch([left, Scripted(right, script)], deadline_s)
    search.load(0)
    return search


@pytest.mark.parametrize("script", [["hang"], [IndexNotReady("restarting"), "hang"]])
def test_shard_that_comes_back_is_asked_again(folder, script):
    found = two_shards(folder, script, 3.0).search(call(queries_QD=QUERY_VECTORS))
    np.testing.assert_array_equal(found[0], oracle(QUERY_VECTORS @ VECTORS.T, 5)[0])


def test_missing_shard_is_named_and_no_list_is_returned(folder):
    with pytest.raises(IndexNotReady, match=r"1 of 2 index shards.*shard 1: gone"):
        two_shards(folder, [IndexNotReady("gone")] * 99).search(call(queries_QD=QUERY_VECTORS))


def test_stale_search_is_not_tried_again(folder):
    script: list[object] = [StalenessViolated("old"), "answer"]
    with pytest.raises(StalenessViolated):
        two_shards(folder, script).search(call(queries_QD=QUERY_VECTORS))
    assert script == ["answer"]


@given(num_rows=st.integers(1, 500), block_rows=st.integers(1, 60), num_shards=st.integers(1, 9))
def test_shards_hold_every_row_once_and_cut_between_blocks(num_rows, block_rows, num_shards):
    shards = shard_rows(num_rows, block_rows, num_shards)
    assert [row for first, last in shards for row in range(first, last)] == list(range(num_rows))
    assert all(first % block_rows == 0 for first, _ in shards)


def test_searches_beside_a_load_see_one_version(folder, shard):
    write_version(folder, spec_of(1, step=1), -VECTORS)
    expected = shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)[0]
    loading = threading.Thread(target=shard.load, args=(1,))
    loading.start()
    for _ in range(20):
        np.testing.assert_array_equal(shard.search(0, 3, 0, 9, QUERY_VECTORS, 5)[0], expected)
    loading.join()
