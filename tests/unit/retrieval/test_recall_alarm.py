"""The recall searches are served with: shown to operators, loud once when low, and a reason to compact."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shard_model import DIM, SPEC, Beside, wait_until

from retrieval.config import RetrievalConfig
from retrieval.metrics import RetrievalMetrics, ShardLoad
from retrieval.shard.version_index import VersionIndex
from retrieval.truth.records import Vectors
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import Record, SearchRequest, SearchResult
from retrieval.vectors.recall import AskedQueries
from retrieval.vectors.types import SearchEffort

REQUEST = SearchRequest("x", tenant="t", mode="dense")


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    beside = Beside(tmp_path / "shard", RetrievalConfig(shadow_share=1.0, num_candidates=20))
    yield beside
    beside.shard.close()


@pytest.fixture
def version(beside: Beside) -> StoredVersion:
    """A version of 3,000 chunks over inverted lists that are searched far too little."""
    version = beside.shard.store.make_version(replace(SPEC, kind="ivf_sq8"))
    records = [Record(f"r{number}", f"text n{number}") for number in range(3000)]
    vectors = Vectors(unit_rows(3000, 0))
    beside.shard.store.upsert("t", "l", records, {beside.version.number: vectors, version.number: vectors})
    beside.shard.compact(version.version_id)
    index_of(beside, version).vectors.base.effort = SearchEffort(1, 1)
    return version


def unit_rows(num_rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def index_of(beside: Beside, version: StoredVersion) -> VersionIndex:
    return beside.shard._residents._indexes[version.number]


def ask(beside: Beside, version: StoredVersion, query_D: np.ndarray) -> str:
    (found,) = beside.shard.candidates(version.version_id, [REQUEST], query_D[None])
    return found.plan


def report_of(beside: Beside, version: StoredVersion):
    return next(one for one in beside.shard.segments() if one.version_id == version.version_id)


def test_low_recall_is_reported_warned_of_once_and_mended_by_compaction(
    beside: Beside, version: StoredVersion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert report_of(beside, version).served_recall is None
    for number, query_D in enumerate(unit_rows(40, 1), start=1):
        assert ask(beside, version, query_D).startswith("ivf_sq8")
        wait_until(lambda number=number: beside.shard.recall_served(version.version_id).num_queries == number)
    report = report_of(beside, version)
    served = report.served_recall
    assert served.alarm
    assert 0 < served.low < served.recall < served.high < served.floor == beside.config.recall_floor
    assert caplog.text.count("below recall_floor=0.95; the next compaction tunes it anew") == 1
    assert report.num_compactions == 1, "a base of the very rows it has would be no better"
    text = RetrievalMetrics().prometheus_text(0, {"s0": ShardLoad([report], 0)})
    labels = f'{{shard="s0",version="{version.version_id}"}}'
    assert f"graft_retrieval_recall_alarm{labels} 1.0" in text
    assert f"graft_retrieval_served_recall{labels} {served.recall}" in text
    vectors = Vectors(unit_rows(1, 2))
    embedded = {beside.version.number: vectors, version.number: vectors}
    beside.shard.store.upsert("t", "l", [Record("new", "text new")], embedded)
    ask(beside, version, unit_rows(1, 3)[0])
    wait_until(lambda: report_of(beside, version).num_compactions == 2)
    assert "searches looked at, below the floor" in caplog.text
    mended = report_of(beside, version)
    assert mended.num_delta_rows == 0
    assert mended.built_recall >= beside.config.recall_floor
    assert mended.served_recall is None or not mended.served_recall.alarm


def test_estimate_rests_on_queries_asked_lately_where_there_are_enough(
    beside: Beside, version: StoredVersion
) -> None:
    asked_D = unit_rows(1, 4)[0]
    vectors = index_of(beside, version).vectors
    found, truth = (set(vectors.search(asked_D[None], 10, exact=exact)[1][0]) for exact in (False, True))
    own = len(found & truth) / 10
    for _ in range(31):
        ask(beside, version, asked_D)
    asked = beside.shard.estimate_recall(31, version.version_id)
    assert (asked.recall, asked.num_queries) == (pytest.approx(own), 31)
    rows = beside.shard.estimate_recall(32, version.version_id)
    assert rows.num_queries == 32
    assert rows.recall != pytest.approx(own)


def test_next_base_is_tuned_on_queries_asked_lately(
    beside: Beside, version: StoredVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    from retrieval.vectors import tuner

    real = tuner.tune
    monkeypatch.setattr(tuner, "tune", lambda *args: given.append(args[-1]) or real(*args))
    beside.shard.compact(version.version_id)
    queries_QD = unit_rows(130, 5)
    for query_D in queries_QD:
        ask(beside, version, query_D)
    beside.shard.compact(version.version_id)
    assert given[0] is None
    np.testing.assert_array_equal(given[1], queries_QD[-128:])


def test_only_the_newest_queries_are_kept() -> None:
    asked = AskedQueries(limit=3)
    assert asked.last(1) is None
    rows = unit_rows(5, 6)
    asked.add(rows)
    np.testing.assert_array_equal(asked.last(3), rows[2:])
    np.testing.assert_array_equal(asked.last(2), rows[3:])
    assert asked.last(4) is None
    assert asked.last(0) is None


def test_metrics_count_searches_and_forget_shards_that_are_gone() -> None:
    metrics = RetrievalMetrics()
    whole = SearchResult((), (), "v", 1)
    metrics.searched([whole, replace(whole, partial=True)])
    metrics.failed(3)
    text = metrics.prometheus_text(7, {"shard-0": ShardLoad((), 5), "shard-1": None})
    for line in (
        "graft_retrieval_searches_total 2.0",
        "graft_retrieval_partial_results_total 1.0",
        "graft_retrieval_failed_searches_total 3.0",
        "graft_retrieval_queued_searches 7.0",
        'graft_retrieval_shard_up{shard="shard-0"} 1.0',
        'graft_retrieval_shard_up{shard="shard-1"} 0.0',
        'graft_retrieval_ingest_queue{shard="shard-0"} 5.0',
    ):
        assert line in text.splitlines()
    assert "shard-1" not in metrics.prometheus_text(0, {"shard-0": None})
