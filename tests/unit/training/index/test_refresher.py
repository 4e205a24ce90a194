"""What a trainer gets: versions on time, a bound, exact resume, and nothing deleted that is needed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.fakes_index import (
    DIM,
    QUERIES,
    TEXTS,
    DriftingEncoder,
    Troubled,
    load_drifting,
    saver,
    version_bytes,
)
from training.errors import CheckpointError, ConfigError, IndexNotReady, OutOfResources, StalenessViolated
from training.index.encoder_pool import EncoderPool, InlineEncoderPool
from training.index.encoder_supervisor import ThreadEncoderPool
from training.index.refresh_report import RefresherState, RefreshReport
from training.index.refresher import Refresher, versions_folder
from training.index.schedule import RefreshConfig, RefreshPlan
from training.index.sharded_search import ShardedSearch, local_shards

BLOCK_ROWS = 20
NUM_BLOCKS = 3
ASYNC = RefreshConfig("async", interval_steps=5, delay_steps=3)
BLOCKING = RefreshConfig("blocking", interval_steps=4, delay_steps=0)
ADAPTIVE = RefreshConfig(
    "async", 8, 2, min_interval_steps=4, max_interval_steps=32, probe_k=5, probe_depth=20
)


def inline() -> EncoderPool:
    return InlineEncoderPool(TEXTS, load_drifting)


@dataclass
class Run:
    """Steps of a run that trains nothing, with what each of them saw."""

    folder: Path
    config: RefreshConfig = ASYNC
    pool: EncoderPool | None = field(default_factory=inline)
    rate: float = 0.05
    num_shards: int = 2
    timeout_s: float = 60.0
    seen: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shards = local_shards(versions_folder(self.folder), len(TEXTS), BLOCK_ROWS, self.num_shards)
        self.refresher = Refresher(
            self.config,
            self.folder,
            TEXTS,
            DIM,
            ShardedSearch(shards, deadline_s=1.0),
            self.pool,
            dtype="float32",
            block_rows=BLOCK_ROWS,
            probe_queries=QUERIES,
            timeout_s=self.timeout_s,
        )

    def step(self, step: int) -> RefreshReport:
        encoder = DriftingEncoder(step, self.rate)
        report = self.refresher.before_step(step, saver(step, self.rate), encoder)
        rows_QK, scores_QK = self.refresher.search(encoder.encode_queries(QUERIES), 5, step)
        self.seen.append((step, rows_QK.tobytes() + scores_QK.tobytes()))
        return report

    def steps(self, first: int, last: int) -> list[RefreshReport]:
        return [self.step(step) for step in range(first, last)]


def expected_rows(step: int, rate: float = 0.05) -> np.ndarray:
    encoder = DriftingEncoder(step, rate)
    scores_QN = encoder.encode_queries(QUERIES) @ encoder.encode(TEXTS).T
    return np.argsort(-scores_QN, axis=1, kind="stable")[:, :5]


@pytest.mark.parametrize("config", [ASYNC, BLOCKING])
def test_each_step_searches_the_vectors_of_its_planned_snapshot(tmp_path, config):
    run, plan = Run(tmp_path, config), RefreshPlan.start(config)
    for step in range(25):
        report = run.step(step)
        snapshot_step = plan.version(plan.active(step)).snapshot_step
        rows_QK = np.frombuffer(run.seen[-1][1][: len(QUERIES) * 5 * 8], dtype=np.int64).reshape(-1, 5)
        np.testing.assert_array_equal(rows_QK, expected_rows(snapshot_step))
        assert (report.version, report.staleness) == (plan.active(step), step - snapshot_step)
    assert run.refresher.counters.searches == 25
    assert run.refresher.counters.violations == 0


@pytest.mark.parametrize("mode", ["frozen", "query_side"])
def test_tower_that_does_not_train_is_encoded_once(tmp_path, mode):
    reports = Run(tmp_path, RefreshConfig(mode)).steps(0, 30)
    assert [report.snapshotted for report in reports if report.snapshotted is not None] == [0]
    assert {(report.version, report.staleness) for report in reports} == {(0, 0)}


def test_encoder_speed_changes_no_result(tmp_path):
    fast = Run(tmp_path / "fast")
    fast.steps(0, 20)
    pool = ThreadEncoderPool(TEXTS, Troubled(tmp_path / "marks", "slow", 6, slow_s=0.05), num_encoders=2)
    slow = Run(tmp_path / "slow", pool=pool)
    reports = slow.steps(0, 20)
    slow.refresher.close()
    assert slow.seen == fast.seen
    assert sum(report.stall_s for report in reports) == pytest.approx(slow.refresher.counters.stall_s)
    assert slow.refresher.counters.stall_s > 0


def test_late_version_stops_the_run_at_its_activation_not_before(tmp_path):
    trouble = Troubled(tmp_path / "marks", "slow", 99, slow_s=60.0, only_from=NUM_BLOCKS)
    run = Run(tmp_path, pool=ThreadEncoderPool(TEXTS, trouble, num_encoders=2), timeout_s=3.0)
    assert run.steps(0, 8)[-1].num_pending == NUM_BLOCKS
    with pytest.raises(IndexNotReady, match=rf"version 1 lacks {NUM_BLOCKS} blocks"):
        run.step(8)
    run.refresher.close()


def test_search_of_a_step_that_was_not_prepared_is_refused(tmp_path):
    run = Run(tmp_path)
    queries_QD = DriftingEncoder(0).encode_queries(QUERIES)
    with pytest.raises(ValueError, match=r"call before_step\(0\) first"):
        run.refresher.search(queries_QD, 5, 0)
    run.steps(0, 8)
    with pytest.raises(ValueError, match=r"call before_step\(8\) first"):
        run.refresher.search(queries_QD, 5, 8)


def test_steps_are_prepared_in_order(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="every step is prepared"):
        run.step(1)


def test_search_that_would_break_the_bound_is_refused_and_counted(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 2)
    plan = run.refresher.plan

    class Late(RefreshPlan):
        """A plan that forgot an activation."""

        def active(self, step: int) -> int:
            return 0

    run.refresher.plan = Late(plan.config, plan.decided_versions)
    with pytest.raises(StalenessViolated, match="bound of this run is 0 to 7"):
        run.refresher.search(DriftingEncoder(0).encode_queries(QUERIES), 5, 8)
    assert run.refresher.counters.violations == 1


def resumed(run: Run, state: RefresherState, **values) -> Run:
    """Return the run of another process on the same folder."""
    again = Run(run.folder, run.config, rate=run.rate, **values)
    again.refresher.restore(RefresherState.from_json(json.loads(json.dumps(state.to_json()))))
    return again


@pytest.mark.parametrize("config", [ASYNC, BLOCKING, ADAPTIVE])
@pytest.mark.parametrize("at", [0, 4, 7, 8, 13])
def test_resume_at_any_step_continues_bit_identically(tmp_path, config, at):
    whole = Run(tmp_path / "whole", config, rate=0.02)
    whole.steps(0, 30)
    cut = Run(tmp_path / "cut", config, rate=0.02)
    cut.steps(0, at + 1)
    state = cut.refresher.state()
    cut.steps(at + 1, at + 3)
    again = resumed(cut, state, num_shards=3)
    again.steps(at + 1, 30)
    assert cut.seen[: at + 1] + again.seen == whole.seen
    assert again.refresher.plan == whole.refresher.plan


@pytest.mark.parametrize("damage", ["tear", "remove"])
def test_resume_encodes_only_damaged_blocks_again(tmp_path, damage):
    run = Run(tmp_path)
    run.steps(0, 9)
    state = run.refresher.state()
    before = version_bytes(versions_folder(tmp_path), 1)
    victims = sorted((versions_folder(tmp_path) / "v1").glob("rows-*.npy"))[1:]
    untouched = sorted((versions_folder(tmp_path) / "v1").glob("rows-*.npy"))[0]
    stamp = untouched.stat().st_mtime_ns
    for path in victims:
        os.truncate(path, 64) if damage == "tear" else path.unlink()
    resumed(run, state).steps(9, 10)
    assert version_bytes(versions_folder(tmp_path), 1) == before
    assert untouched.stat().st_mtime_ns == stamp


def test_damage_found_while_loading_is_repaired_and_counted(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 5)
    run.step(5)
    run.pool.wait(1, 10)
    next((versions_folder(tmp_path) / "v1").glob("rows-000000020*.npy")).unlink()
    run.steps(6, 9)
    assert run.refresher.counters.blocks_again == 1
    np.testing.assert_array_equal(
        np.frombuffer(run.seen[-1][1][: len(QUERIES) * 5 * 8], dtype=np.int64).reshape(-1, 5),
        expected_rows(5),
    )


def test_leftovers_of_a_run_with_other_weights_are_not_used(tmp_path):
    Run(tmp_path, rate=0.5).steps(0, 9)
    run, clean = Run(tmp_path), Run(tmp_path.with_name("clean"))
    run.steps(0, 9)
    clean.steps(0, 9)
    assert run.seen == clean.seen


def test_resume_with_another_plan_corpus_or_damaged_weights_is_refused(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 7)
    state = run.refresher.state()
    with pytest.raises(CheckpointError, match="another refresh configuration"):
        Run(tmp_path, BLOCKING).refresher.restore(state)
    (tmp_path / "weights" / "w1" / "weights.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not those of the checkpoint"):
        resumed(run, state)
    shutil.rmtree(tmp_path / "weights" / "w1")
    with pytest.raises(CheckpointError, match="are missing"):
        resumed(run, state)
    with pytest.raises(CheckpointError, match="cannot be read"):
        RefresherState.from_json({**state.to_json(), "weights_hashes": {}})


def stored(folder: Path) -> set[str]:
    return {path.name for name in ("versions", "weights") for path in (folder / name).iterdir()}


def test_versions_that_a_kept_checkpoint_needs_are_not_collected(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 7)
    kept = run.refresher.state()
    run.steps(7, 20)
    assert kept.versions == (0, 1)
    assert run.refresher.collect([kept]) == [2]
    assert stored(tmp_path) == {"v0", "v1", "v3", "w0", "w1", "w3"}
    assert run.refresher.collect([]) == [0, 1]
    assert stored(tmp_path) == {"v3", "w3"}
    resumed(run, run.refresher.state()).steps(20, 30)


def test_ranks_that_follow_see_what_the_driver_sees(tmp_path):
    driver, follower = Run(tmp_path, ADAPTIVE), Run(tmp_path, ADAPTIVE, pool=None, num_shards=3)
    for step in range(60):
        report = driver.step(step)
        follower.step(step)
        if report.activated is not None:
            follower.refresher.follow(driver.refresher.plan)
    assert follower.seen == driver.seen
    assert driver.refresher.plan.decided_versions[3:]


def test_plan_that_contradicts_the_known_one_is_not_followed(tmp_path):
    run = Run(tmp_path, ADAPTIVE)
    with pytest.raises(ValueError, match="diverged"):
        run.refresher.follow(RefreshPlan.start(ASYNC))


@pytest.mark.parametrize(("rate", "intervals"), [(1e-6, [8, 16, 32]), (3.0, [8, 4, 4])])
def test_interval_follows_the_drift(tmp_path, rate, intervals):
    run = Run(tmp_path, ADAPTIVE, rate=rate)
    run.steps(0, 90)
    steps = [0, *(version.snapshot_step for version in run.refresher.plan.decided_versions)]
    assert list(np.diff(steps))[:3] == intervals


def test_adaptive_interval_needs_probes(tmp_path):
    run = Run(tmp_path, ADAPTIVE)
    run.steps(0, 10)
    with pytest.raises(ConfigError, match="probe_encoder"):
        run.refresher.before_step(10, saver(10))
    with pytest.raises(ConfigError, match="probe_queries"):
        Refresher(ADAPTIVE, tmp_path, TEXTS, DIM, run.refresher._shards, inline())


def test_probe_measures_drift(tmp_path):
    run = Run(tmp_path, BLOCKING)
    run.steps(0, 4)
    same = run.refresher.probe(3, DriftingEncoder(0))
    near, far = (run.refresher.probe(3, DriftingEncoder(step)) for step in (3, 300))
    assert (same.cosine, same.overlap) == (pytest.approx(1.0), 1.0)
    assert 1 > near.cosine > far.cosine
    assert same.overlap >= near.overlap > far.overlap


def test_full_disk_at_a_snapshot_is_named_and_leaves_no_half_folder(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 5)

    def full(folder: Path) -> None:
        (folder / "weights.json").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutOfResources, match="disk is full"):
        run.refresher.before_step(5, full)
    assert stored(tmp_path) == {"v0", "w0"}
    run.steps(5, 10)


def test_snapshot_without_files_is_refused(tmp_path):
    def nothing(folder: Path) -> None: ...

    with pytest.raises(ValueError, match="must write at least one file"):
        Run(tmp_path).refresher.before_step(0, nothing)


@pytest.mark.parametrize("values", [{"texts": ()}, {"dim": 0}, {"block_rows": 0}])
def test_index_of_nothing_is_refused(tmp_path, values):
    arguments = {"texts": TEXTS, "dim": DIM, "block_rows": 7, **values}
    shards = ShardedSearch(local_shards(tmp_path, len(TEXTS), 7))
    with pytest.raises(ConfigError, match="needs texts"):
        Refresher(ASYNC, tmp_path, shards=shards, pool=None, **arguments)
