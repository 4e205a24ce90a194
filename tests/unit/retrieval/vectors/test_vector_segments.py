"""Base, delta and tombstones answer as one matrix would, whatever the plan."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.vectors import ExactBase, SearchEffort, VectorSegments, VectorSettings, build_base
from retrieval.vectors import exact as exact_search

DIM = 16


class Keep:
    def __init__(self, keep: np.ndarray | None, count: int = 0, name: str | None = None) -> None:
        self.keep = keep
        self.count = count
        self.name = name or (None if keep is None else keep.tobytes())


def unit_rows(num_rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def segments_of(rows: np.ndarray, num_base: int, **values) -> VectorSegments:
    base = ExactBase(np.ascontiguousarray(rows[:num_base]), num_threads=1)
    segments = VectorSegments(base, VectorSettings(num_threads=1, **values))
    if len(rows) > num_base:
        segments.add(rows[num_base:])
    return segments


def oracle(rows: np.ndarray, queries: np.ndarray, k: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32)
    scores[:, ~keep] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, int(keep.sum()))]
    return np.take_along_axis(scores, order, axis=1), order


@settings(max_examples=80, deadline=None)
@given(
    num_base=st.integers(0, 400),
    num_delta=st.integers(0, 200),
    num_queries=st.integers(0, 9),
    k=st.integers(1, 700),
    share=st.sampled_from([None, 0.0, 0.01, 0.3, 0.9, 1.0]),
    num_dead=st.integers(0, 60),
    gather=st.sampled_from([0, 50, 10_000]),
    exact=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_split_of_rows_answers_as_one_matrix(
    num_base, num_delta, num_queries, k, share, num_dead, gather, exact, seed
):
    rng = np.random.default_rng(seed)
    rows, queries = unit_rows(num_base + num_delta, seed), unit_rows(num_queries, seed + 1)
    segments = segments_of(rows, num_base, gather_max_rows=gather)
    dead = rng.choice(len(rows), min(num_dead, len(rows)), replace=False)
    segments.remove(dead)
    alive = np.ones(len(rows), dtype=bool)
    alive[dead] = False
    assert segments.num_live == alive.sum()
    selection = None if share is None else Keep(rng.random(len(rows)) < share)
    keep = alive if selection is None else alive & selection.keep
    scores, positions, plan = segments.search(queries, k, selection, exact=exact)
    true_scores, true_positions = oracle(rows, queries, k, keep)
    assert positions.shape == true_positions.shape, plan
    assert np.array_equal(positions, true_positions), plan
    assert np.allclose(scores, true_scores, atol=1e-6), plan


def test_scores_do_not_depend_on_where_a_row_lies_or_who_asks_with_it():
    rows, queries = unit_rows(5000, seed=1, dim=384), unit_rows(33, seed=2, dim=384)
    together = segments_of(rows, 5000).search(queries, 20)
    for num_base in (0, 1234, 4999):
        parts = segments_of(rows, num_base)
        scores, positions, _ = parts.search(queries, 20)
        assert np.array_equal(scores, together[0])
        assert np.array_equal(positions, together[1])
        for query in range(0, 33, 8):
            assert np.array_equal(parts.search(queries[query : query + 1], 20)[0][0], together[0][query])


def test_equal_rows_come_in_the_order_of_their_positions():
    rows = np.repeat(unit_rows(3, seed=3), 5, axis=0)
    _, positions, _ = segments_of(rows, 7).search(rows[:1], 5)
    assert positions.tolist() == [[0, 1, 2, 3, 4]]


def test_a_removed_row_is_never_returned_even_if_a_selection_keeps_it():
    rows = unit_rows(300, seed=4)
    segments = segments_of(rows, 200)
    everything = np.ones(300, dtype=bool)
    for position in (0, 199, 200, 299):
        segments.remove(np.array([position]))
        for exact in (False, True):
            _, found, _ = segments.search(rows, 300, Keep(everything, 300), exact=exact)
            assert position not in found
    segments.remove(np.array([0, 199]))
    assert segments.num_live == 296
    assert not set(segments.live_positions()) & {0, 199, 200, 299}


def test_copied_rows_of_a_selection_stay_while_the_delta_grows():
    rows = unit_rows(3000, seed=5)
    segments = segments_of(rows, 2000)
    before = segments.resident_bytes
    keep = np.zeros(3000, dtype=bool)
    keep[::50] = True
    assert segments.search(rows[:1], 3, Keep(keep, 60))[2] == "gather+exact 40 of 2,000 + delta 20"
    held = segments.resident_bytes
    assert held > before
    segments.search(rows[:1], 3, Keep(keep.copy(), 60))
    assert segments.resident_bytes == held


def test_rows_of_a_filter_that_die_are_masked_and_the_others_not_copied_again(monkeypatch):
    rows, queries = unit_rows(2000, seed=13), unit_rows(9, seed=14)
    segments = segments_of(rows, 2000)
    keep = np.zeros(2000, dtype=bool)
    keep[::20] = True
    searched: list[np.ndarray] = []
    search = exact_search.search

    def seen(queries_QD, rows_ND, *rest):
        searched.append(rows_ND)
        return search(queries_QD, rows_ND, *rest)

    monkeypatch.setattr("retrieval.vectors.segments.exact_search.search", seen)
    for num_queries in (1, 9) * 14:
        some = queries[:num_queries]
        _, found, _ = segments.search(some, 30, Keep(keep, name="a filter"))
        assert np.array_equal(found, oracle(rows, some, 30, keep)[1])
        gone = np.flatnonzero(keep)[3]
        keep = keep.copy()
        keep[gone] = False
        segments.remove(np.array([gone]))
    copied = {id(block): len(block) for block in searched}
    assert list(copied.values()) == [100, 74]  # Anew only once a quarter of them are gone.


def test_a_filter_that_keeps_other_rows_than_before_finds_them():
    rows, queries = unit_rows(500, seed=15), unit_rows(3, seed=16)
    segments = segments_of(rows, 500)
    for first in (0, 1, 0):
        keep = np.zeros(500, dtype=bool)
        keep[first::4] = True
        _, found, _ = segments.search(queries, 20, Keep(keep, name="a filter"))
        assert np.array_equal(found, oracle(rows, queries, 20, keep)[1])


def test_compaction_is_due_by_delta_rows_and_by_dead_rows():
    rows = unit_rows(4000, seed=6)
    segments = segments_of(rows, 4000, delta_max_rows=10, max_dead_share=0.3)
    assert segments.needs_compaction() is None
    segments.remove(np.arange(1200))
    assert segments.needs_compaction() is None
    segments.remove(np.arange(1201))
    assert segments.needs_compaction() == "1,201 of 4,000 rows are dead"
    segments.add(rows[:11])
    assert segments.needs_compaction() == "11 rows in the delta, more than 10"


def test_vectors_come_back_as_they_went_in():
    rows = unit_rows(50, seed=7)
    segments = segments_of(rows, 30)
    wanted = np.array([49, 0, 30, 29, 0])
    assert np.array_equal(segments.exact_vectors(wanted), rows[wanted])


def test_bad_input_is_refused_and_changes_nothing():
    segments = segments_of(unit_rows(20, seed=8), 10)
    bad = unit_rows(3, seed=9)
    bad[1, 2] = np.nan
    refused = {
        "vector 1 holds NaN": lambda: segments.add(bad),
        "the index holds vectors of 16": lambda: segments.add(unit_rows(3, seed=9, dim=DIM + 1)),
        "vector 1 holds": lambda: segments.search(bad, 3),
        "holds vectors of 16": lambda: segments.search(unit_rows(1, seed=9, dim=4), 3),
        "k must be at least 1": lambda: segments.search(unit_rows(1, seed=9), 0),
        "a selection has shape": lambda: segments.search(
            unit_rows(1, seed=9), 3, Keep(np.ones(19, dtype=bool))
        ),
        "from 0 to 19; got .20": lambda: segments.remove(np.array([20])),
        "from 0 to 19; got .-1": lambda: segments.remove(np.array([-1])),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert (len(segments), segments.num_live) == (20, 20)


def test_queries_an_approximate_base_leaves_short_are_answered_exactly():
    rows = unit_rows(4000, seed=10)
    base = build_base(rows, "ivf_sq8", VectorSettings(num_threads=1))
    segments = VectorSegments(base, VectorSettings(num_threads=1, gather_max_rows=0))
    far = np.argsort(rows @ rows[0])[:2000]
    keep = np.zeros(4000, dtype=bool)
    keep[far] = True
    _, positions, plan = segments.search(rows[:40], 900, Keep(keep, 2000), effort=SearchEffort(1, 1))
    assert (positions >= 0).all()
    assert keep[positions].all()
    assert "again exactly" in plan or plan.startswith("exact")


def test_blas_is_used_for_batches_whoever_reset_the_threshold():
    import faiss

    from retrieval.vectors import faiss_runtime

    rows = unit_rows(100, seed=11)
    faiss.cvar.distance_compute_blas_threshold = 128_000
    exact_search.search(rows[:2], rows, 3, None, 1)
    assert faiss.cvar.distance_compute_blas_threshold == faiss_runtime.BLAS_THRESHOLD == 2000


def test_threads_are_set_in_the_thread_that_searches():
    import faiss

    rows, seen = unit_rows(100, seed=12), []

    def work():
        exact_search.search(rows[:2], rows, 3, None, 1)
        seen.append(faiss.omp_get_max_threads())

    faiss.omp_set_num_threads(2)
    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]


def test_threads_left_open_are_those_the_process_was_given(monkeypatch):
    import faiss

    rows = unit_rows(100, seed=12)
    for told, threads in (("1", 1), ("", len(os.sched_getaffinity(0)))):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        exact_search.search(rows[:2], rows, 3, None, 0)
        assert faiss.omp_get_max_threads() == threads


def test_importing_the_package_loads_neither_faiss_nor_torch():
    code = (
        "import sys, retrieval.vectors as v\n"
        "[getattr(v, name) for name in v.__all__]\n"
        "from retrieval.vectors import codecs, memory, planner, recall, tuner\n"
        "assert not {'faiss', 'torch', 'ray'} & set(sys.modules)\n"
        "assert dir(v) == sorted(v.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
