"""The planner, the tuner, the memory check and the recall estimate keep their rules."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from retrieval.config import RetrievalConfig
from retrieval.vectors import (
    IndexTooLarge,
    RecallEstimator,
    SearchEffort,
    VectorSegments,
    VectorSettings,
    build_base,
    chosen_kind,
    estimate_recall,
    memory,
    planner,
    tuner,
)
from retrieval.vectors.recall import wilson_interval

SETTINGS = VectorSettings(num_threads=1)


class PlannedBase:
    """A base as the planner sees it: so many rows, so dear a search."""

    def __init__(self, kind: str, num_rows: int, us: float) -> None:
        self.kind = kind
        self.matrix_ND = np.empty((num_rows, 384), dtype=np.float32)
        self.effort = SearchEffort(64, 8)
        self.max_probes = 1000
        self._us = us

    def search_us(self, effort: SearchEffort) -> float:
        return self._us


@pytest.mark.parametrize(
    ("kind", "kept", "num_queries", "exact", "path"),
    [
        ("ivf_pq", 0, 1, False, "nothing"),
        ("ivf_pq", 20_000, 1, False, "gather"),
        ("ivf_pq", 20_001, 1, False, "base"),
        ("ivf_pq", 20_001, 32, False, "exact"),
        ("ivf_pq", 1_000_000, 32, False, "base"),
        ("ivf_pq", 1_000_000, 32, True, "exact"),
        ("ivf_pq", 500_000, 1, True, "exact"),
        ("hnsw", 500_000, 1, False, "exact"),
        ("hnsw", 500_001, 1, False, "base"),
        ("exact", 500_000, 1, False, "exact"),
        ("exact", 1_000_000, 1, False, "exact"),
        ("exact", 300, 1, False, "gather"),
    ],
)
def test_planner_goes_by_what_is_kept(kind, kept, num_queries, exact, path):
    base = PlannedBase(kind, 1_000_000, us=300)
    plan = planner.choose(base, kept, 7, num_queries, 20_000, exact=exact)
    assert plan.path == path
    assert (plan.effort is not None) == (path == "base")
    assert plan.text.endswith("delta 7")


def clustered(num_rows: int, seed: int, dim: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, dim))
    values = centres[rng.integers(0, 40, num_rows)] + 1.2 * rng.standard_normal((num_rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


ROWS = clustered(5000, seed=0)


def test_tuner_takes_the_cheapest_effort_above_the_floor_and_reports_the_front():
    base = build_base(ROWS, "ivf_sq8", SETTINGS)
    cheap = tuner.tune(base, 0.6, 1)
    dear = tuner.tune(base, 0.97, 1)
    assert cheap.reaches_floor
    assert dear.reaches_floor
    assert cheap.recall >= 0.6
    assert dear.recall >= 0.97
    assert cheap.effort.probes < dear.effort.probes
    recalls = [point.recall for point in dear.front]
    times = [point.query_us for point in dear.front]
    assert recalls == sorted(recalls)
    assert times == sorted(times)
    assert dear.effort in [point.effort for point in dear.front]


def test_tuner_says_when_no_effort_reaches_the_floor():
    base = build_base(ROWS, "rabitq", SETTINGS)
    tuned = tuner.tune(base, 1.01, 1)
    assert not tuned.reaches_floor
    assert tuned.recall == max(point.recall for point in tuned.front)


def test_tuner_takes_real_queries_when_it_is_given_them():
    base = build_base(ROWS, "ivf_sq8", SETTINGS)
    strangers = clustered(64, seed=99)
    tuned = tuner.tune(base, 0.9, 1, queries_QD=strangers)
    _, found = base.search(strangers, 10, None, tuned.effort)
    truth = np.argsort(-(strangers @ ROWS.T), axis=1)[:, :10]
    assert tuner.recalls_of(found, truth).mean() == pytest.approx(tuned.recall, abs=0.01)


def test_pareto_front_drops_what_is_beaten_in_both():
    def point(us, recall):
        return tuner.Point(SearchEffort(int(us), 1), recall, 0.0, us)

    front = tuner.pareto_front([point(5, 0.9), point(3, 0.8), point(4, 0.7), point(9, 0.95), point(3, 0.5)])
    assert [(p.query_us, p.recall) for p in front] == [(3, 0.8), (5, 0.9), (9, 0.95)]


def test_a_query_row_is_left_out_of_its_own_answer():
    found = np.array([[3, 7, 9], [1, 2, -1]])
    assert tuner.without(found, np.array([7, 5])).tolist() == [[3, 9, -1], [1, 2, -1]]


def test_build_beyond_the_memory_limit_is_refused_with_a_kind_that_fits():
    limit = memory.needed_bytes("ivf_pq", 2_000_000, 384) + 1
    settings = VectorSettings(memory_limit_bytes=limit)
    with pytest.raises(
        IndexTooLarge, match=r"'hnsw' over 2,000,000 x 384 .*index_memory_limit_bytes.*'ivf_pq'"
    ):
        memory.check("hnsw", 2_000_000, 384, settings)
    memory.check("ivf_pq", 2_000_000, 384, settings)
    with pytest.raises(IndexTooLarge, match="kind 'exact'"):
        build_base(ROWS, "ivf_sq8", VectorSettings(memory_limit_bytes=1000))


def test_memory_free_now_bounds_a_generous_limit(monkeypatch):
    class Free:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    with pytest.raises(IndexTooLarge, match=r"0\.00 GiB may be used"):
        memory.check("ivf_sq8", 100_000, 384, VectorSettings(memory_limit_bytes=1 << 40))


def test_auto_is_exact_while_small_codes_when_large_and_exact_again_without_memory():
    cpu = VectorSettings(device="cpu")
    assert chosen_kind(100_000, 384, cpu) == "exact"
    assert chosen_kind(100_001, 384, cpu) == "ivf_pq"
    assert chosen_kind(5_000_000, 384, VectorSettings(device="cpu", memory_limit_bytes=1000)) == "exact"


def test_estimated_codes_are_within_a_fifth_of_what_is_written(tmp_path):
    for kind in ("ivf_sq8", "ivf_pq", "rabitq", "hnsw"):
        folder = tmp_path / kind
        folder.mkdir()
        base = build_base(ROWS, kind, SETTINGS)
        written = sum(path.stat().st_size for path in base.save(folder))
        # In memory, not on disk: the list of each row.
        written += 0 if kind == "hnsw" else 4 * len(ROWS)
        assert base.resident_bytes == pytest.approx(written, rel=0.2), kind


def test_wilson_interval_matches_published_values():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


def test_alarm_rings_only_when_the_whole_interval_is_below_the_floor():
    truth = np.tile(np.arange(10), (400, 1))
    half = np.where(np.arange(10) < 5, truth, 99)
    estimator = RecallEstimator(floor=0.9, share=1.0, window=400)
    estimator.record(half[:20], truth[:20])
    assert not estimator.estimate().alarm, "too few queries to ring"
    estimator.record(half[:60], truth[:60])
    estimate = estimator.estimate()
    assert (estimate.recall, estimate.alarm, estimate.num_queries) == (0.5, True, 80)
    assert estimate.low < 0.5 < estimate.high < 0.9
    estimator.record(truth, truth)
    assert (estimator.estimate().recall, estimator.estimate().alarm) == (1.0, False)
    estimator.reset()
    assert estimator.estimate().num_queries == 0


def test_shadowed_share_is_the_one_configured():
    estimator = RecallEstimator(floor=0.9, share=0.2)
    assert sum(estimator.wants() for _ in range(5000)) == pytest.approx(1000, rel=0.15)
    assert not any(RecallEstimator(floor=0.9, share=0.0).wants() for _ in range(100))


def test_estimate_tells_a_good_base_from_a_starved_one():
    base = build_base(ROWS, "ivf_sq8", SETTINGS)
    segments = VectorSegments(base, SETTINGS)
    good = estimate_recall(segments, 200, floor=0.9)
    assert good.recall >= 0.93
    assert not good.alarm
    base.effort = SearchEffort(1, 1)
    starved = estimate_recall(segments, 200, floor=0.9)
    assert starved.alarm
    assert starved.recall < good.recall
    estimator = RecallEstimator(floor=0.9, share=1.0)
    queries = clustered(100, seed=5)
    estimator.shadow(segments, queries, segments.search(queries, 10)[1])
    assert estimator.estimate().alarm


def test_settings_follow_the_configuration():
    config = RetrievalConfig(
        vector_threads=3, recall_floor=0.8, delta_max_rows=7, vector_device="cpu", gather_max_rows=9
    )
    settings = VectorSettings.of(config)
    assert (settings.num_threads, settings.recall_floor, settings.delta_max_rows) == (3, 0.8, 7)
    assert (settings.device, settings.gather_max_rows) == ("cpu", 9)
    with pytest.raises(ValueError, match="vector_device"):
        RetrievalConfig(vector_device="tpu")
