"""What the driver of a Ray job decides, without a cluster: what is asked of it, and what a notice means."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from training.errors import DataError, JobError, OutOfResources
from training.jobs import JobConfig, parse_job, ray_run
from training.jobs.job_data import JobSets
from training.jobs.kinds import KindOutcome
from training.jobs.ray_run import check_cluster, cluster_needs, run_on_ray
from training.types import TrainingSet

SETS = JobSets(TrainingSet("none"), None)


@pytest.fixture
def config(job_text: str) -> JobConfig:
    asked = ["ranks.num_workers=3", "ranks.cpus=2", "ranks.gpus=1.0", "ranks.resources.trainer=0.5"]
    return parse_job(job_text, [*asked, "index.num_encoders=2", "index.encoder_gpus=0.5"])


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[ray_run._RankEnd]:
    """How each start of the ranks ends, in order."""
    waiting: list[ray_run._RankEnd] = []
    monkeypatch.setattr(ray_run, "connected", nullcontext)
    monkeypatch.setattr(ray_run.ray, "cluster_resources", lambda: {"CPU": 1e6, "GPU": 1e6, "trainer": 9.0})
    monkeypatch.setattr(ray_run, "check_memory", lambda *_: None)
    monkeypatch.setattr(ray_run, "_start_shards", lambda *_: [])
    monkeypatch.setattr(ray_run, "_fit", lambda *_: waiting.pop(0))
    return waiting


def test_ranks_shards_and_encoders_are_counted_together(config: JobConfig):
    assert cluster_needs(config) == {"CPU": 9.0, "GPU": 4.0, "trainer": 1.5}
    check_cluster(config, {"CPU": 9.0, "GPU": 4.0, "trainer": 2.0})
    with pytest.raises(OutOfResources, match=r"GPU: 4 asked, 1 there, 3 missing; trainer: 1\.5 asked"):
        check_cluster(config, {"CPU": 16.0, "GPU": 1.0})


def test_a_preempted_run_is_started_again_and_one_told_to_stop_is_not(
    config: JobConfig, ends: list[ray_run._RankEnd]
):
    early, later = KindOutcome(3, is_complete=False), KindOutcome(5, is_complete=False)
    ends[:] = [ray_run._RankEnd(early, is_preempted=True), ray_run._RankEnd(later)]
    assert run_on_ray(config, SETS) == later
    assert ends == []


def test_an_error_of_a_rank_is_the_jobs(config: JobConfig, ends: list[ray_run._RankEnd]):
    ends[:] = [ray_run._RankEnd(None, DataError("no such passage"))]
    with pytest.raises(DataError, match="no such passage"):
        run_on_ray(config, SETS)
    ends[:] = [ray_run._RankEnd(None)]
    with pytest.raises(JobError, match="ended without a result"):
        run_on_ray(config, SETS)


def test_a_rank_reports_and_asks_once_a_step_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls: list[str] = []
    notices = iter([None, object(), None])
    monkeypatch.setattr(ray_run.ray.train, "report", lambda metrics: calls.append("report"))
    monkeypatch.setattr(
        ray_run.ray.train, "get_preemption_info", lambda: (calls.append("ask"), next(notices))[1]
    )
    watch = ray_run._RankWatch(tmp_path / "stop")
    for step, expected in enumerate([False, True, True]):
        if step == 2:
            (tmp_path / "stop").touch()
        watch.on_step(step, {"loss": 1.0})
        assert watch.should_stop() == expected
    assert calls == ["report", "ask"] * 3
    assert not watch.is_preempted
