"""Joint jobs over Ray: index in actors, ranks by Ray Train, stopped, killed and resumed without a trace."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from tests.small_job import job_toml, write_lookup_set
from training.errors import OutOfResources
from training.jobs import JobOutcome, JobText, LocalJobs, run_job

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    # Ray Train makes a context of Ray Data, which warns of its own defaults (Ray 2.60).
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
STEPS = 8
TWO_RANKS = ("ranks.num_workers=2", "index.num_shards=2")
Start = Callable[..., JobOutcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(ray_session: None, runs: Path) -> Start:
    encoder, reader = build_tiny_encoder(runs / "encoder"), build_tiny_model(runs / "reader")
    data = write_lookup_set(runs / "lookup.json")

    def start(name: str, *overrides: str, resume: bool = False) -> JobOutcome:
        text = job_toml(encoder, reader, data, runs / name, STEPS)
        return run_job(JobText(text, overrides), LocalJobs(runs / "jobs"), resume=resume)

    return start


@pytest.fixture(scope="module")
def one_rank(start: Start, runs: Path) -> Path:
    """A job of one Ray Train worker that nothing happened to."""
    assert start("one", "ranks.num_workers=1") == JobOutcome("succeeded", STEPS, f"{STEPS} steps done")
    return runs / "one"


@pytest.fixture(scope="module")
def two_ranks(start: Start, runs: Path) -> Path:
    """A job of two Ray Train workers that nothing happened to."""
    assert start("two", *TWO_RANKS).state == "succeeded"
    return runs / "two"


def lines(folder: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def when_done(folder: Path, num_steps: int, act: Callable[[], None]) -> threading.Thread:
    """Do something once a job has told of so many steps."""

    def wait() -> None:
        log = folder / "metrics.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < num_steps:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_rank() -> None:
    """Kill a Ray Train worker among this process's descendants."""
    for process in psutil.Process().children(recursive=True):
        if any("RayTrainWorker" in part for part in process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("there is no Ray Train worker to kill")


def test_one_rank_with_index_actors_does_what_a_process_does(start: Start, runs: Path, one_rank: Path):
    assert start("alone").state == "succeeded"
    alone, ray = lines(runs / "alone"), lines(one_rank)
    assert [line["index/staleness"] for line in ray] == [line["index/staleness"] for line in alone]
    for here, there in zip(alone, ray, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


def test_two_ranks_train_on_the_same_samples(one_rank: Path, two_ranks: Path):
    for one, two in zip(lines(one_rank), lines(two_ranks), strict=True):
        assert two["search/recall"] == pytest.approx(one["search/recall"])
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)


def test_killed_ranks_go_on_from_their_copies_in_memory_and_end_with_the_same_bytes(
    start: Start, runs: Path, two_ranks: Path
):
    folder, before = runs / "killed", []

    def kill() -> None:
        before.extend(lines(folder, "timings"))
        kill_rank()

    thread = when_done(folder, 5, kill)
    never_on_disk = ("joint.checkpoint.every_steps=1000", "joint.checkpoint.memory_every_steps=1")
    assert start("killed", *TWO_RANKS, *never_on_disk).state == "succeeded"
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert len(list((folder / "tensorboard").iterdir())) == 2, "the first rank started twice"
    # Steps before the copies were not done again: each has the time that it took then.
    assert lines(folder, "timings")[:3] == before[:3]
    assert lines(folder) == lines(two_ranks)
    assert lines(folder, "evaluations") == lines(two_ranks, "evaluations")


def test_a_job_whose_rank_was_killed_is_stopped_and_resumed_with_the_same_bytes(
    start: Start, runs: Path, one_rank: Path
):
    folder = runs / "troubled"

    def stop() -> None:
        (folder / "stop").touch()

    def kill_then_stop() -> None:
        kill_rank()
        when_done(folder, 6, stop)

    thread = when_done(folder, 4, kill_then_stop)
    stopped = start("troubled", "ranks.num_workers=1")
    thread.join(timeout=10)
    assert stopped.state == "stopped"
    assert 0 < stopped.steps < STEPS
    assert start("troubled", "ranks.num_workers=1", resume=True).state == "succeeded"
    assert lines(folder) == lines(one_rank)
    assert lines(folder, "evaluations") == lines(one_rank, "evaluations")


def test_what_the_cluster_cannot_hold_is_refused_at_once(start: Start):
    with pytest.raises(OutOfResources, match=r"CPU: 1003 asked, \d+ there, \d+ missing"):
        start("big", "ranks.num_workers=1001")
