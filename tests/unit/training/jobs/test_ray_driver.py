"""What the driver of a Ray job decides, without a cluster: what is asked of it, and what a notice means."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from training.errors import DataError, JobError, OutOfResources
from training.jobs import JobConfig, parse_job, ray_run
from training.jobs.job_data import JobSets
from training.jobs.rank_end import KindOutcome, RankEnd
from training.jobs.ray_run import check_cluster, cluster_needs, run_on_ray
from training.joint.parallel import Ranks
from training.types import TrainingSet

SETS = JobSets(TrainingSet("none"), None)


@pytest.fixture
def config(job_text: str) -> JobConfig:
    asked = ["ranks.num_workers=3", "ranks.cpus=2", "ranks.gpus=1.0", "ranks.resources.trainer=0.5"]
    return parse_job(job_text, [*asked, "index.num_encoders=2", "index.encoder_gpus=0.5"])


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[RankEnd]:
    """How each start of the ranks ends, in order."""
    waiting: list[RankEnd] = []
    monkeypatch.setattr(ray_run, "connected", nullcontext)
    monkeypatch.setattr(ray_run.ray, "cluster_resources", lambda: {"CPU": 1e6, "GPU": 1e6, "trainer": 9.0})
    monkeypatch.setattr(ray_run, "check_memory", lambda *_: None)
    monkeypatch.setattr(ray_run, "_start_shards", lambda *_: [])
    monkeypatch.setattr(ray_run, "_start_holders", lambda *_: [])
    monkeypatch.setattr(ray_run, "_fit", lambda *_: waiting.pop(0))
    return waiting


def test_ranks_shards_and_encoders_are_counted_together(config: JobConfig):
    assert cluster_needs(config) == {"CPU": 9.0, "GPU": 4.0, "trainer": 1.5}
    check_cluster(config, {"CPU": 9.0, "GPU": 4.0, "trainer": 2.0})
    with pytest.raises(OutOfResources, match=r"GPU: 4 asked, 1 there, 3 missing; trainer: 1\.5 asked"):
        check_cluster(config, {"CPU": 16.0, "GPU": 1.0})


def test_a_preempted_run_is_started_again_and_one_told_to_stop_is_not(config: JobConfig, ends: list[RankEnd]):
    early, later = KindOutcome(3, is_complete=False), KindOutcome(5, is_complete=False)
    ends[:] = [RankEnd(early, is_preempted=True), RankEnd(later)]
    assert run_on_ray(config, SETS) == later
    assert ends == []


def test_an_error_of_a_rank_is_the_jobs(config: JobConfig, ends: list[RankEnd]):
    ends[:] = [RankEnd(None, DataError("no such passage"))]
    with pytest.raises(DataError, match="no such passage"):
        run_on_ray(config, SETS)
    ends[:] = [RankEnd(None)]
    with pytest.raises(JobError, match="ended without a result"):
        run_on_ray(config, SETS)


@pytest.mark.parametrize("error", [DataError("fewer passages than search.k"), OutOfResources("disk full")])
def test_what_a_restart_would_only_repeat_is_handed_to_the_driver(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ray_run, "ray_train_ranks", lambda: nullcontext(Ranks(rank=1, world_size=2)))
    monkeypatch.setattr(ray_run, "read_sets", lambda *_: SETS)
    monkeypatch.setattr(ray_run, "run_kind", fail)
    arguments = {"config": config, "shards": [], "holders": [], "cwd": "/nowhere"}
    assert ray_run.train_rank(arguments) == RankEnd(None, error)


def test_ray_train_is_told_and_asked_now_and_then_by_every_rank_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls: list[str] = []
    now = [0.0]
    notices = iter([None, object()])
    monkeypatch.setattr(ray_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray_run.ray.train, "report", lambda metrics: calls.append(f"step {metrics['step']}"))
    monkeypatch.setattr(
        ray_run.ray.train, "get_preemption_info", lambda: (calls.append("ask"), next(notices))[1]
    )
    watch = ray_run._RankWatch(tmp_path / "stop", Ranks())
    stops = []
    for step in range(10):
        now[0] += 0.3 * ray_run.TELL_EVERY_S
        watch.on_step(step, {"loss": 1.0})
        stops.append(watch.should_stop())
    assert calls == ["step 3", "ask", "step 7", "ask"]
    assert stops == [False] * 7 + [True] * 3
    assert watch.is_preempted


def test_ranks_follow_the_clock_of_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Second(Ranks):
        def from_first(self, value: bool) -> bool:
            assert not value, "its own clock says that it is too early"
            return True

    calls: list[str] = []
    monkeypatch.setattr(ray_run.ray.train, "report", lambda metrics: calls.append("report"))
    monkeypatch.setattr(ray_run.ray.train, "get_preemption_info", lambda: calls.append("ask"))
    watch = ray_run._RankWatch(tmp_path / "stop", Second(rank=1, world_size=2))
    watch.on_step(0, {"loss": 1.0})
    assert not watch.should_stop()
    assert calls == ["report", "ask"]
    (tmp_path / "stop").touch()
    assert watch.should_stop()
