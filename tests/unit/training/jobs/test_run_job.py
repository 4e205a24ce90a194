"""A job in this process: to its end, stopped and resumed, refused where its folder is taken."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from training.errors import ConfigError, DataError, JobError, OutOfResources
from training.jobs import JobOutcome, JobText, LocalJobs, run_job
from training.jobs.job_folder import JobFolder, JobRecord

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def jobs(tmp_path: Path) -> LocalJobs:
    return LocalJobs(tmp_path / "jobs")


def run(text: str, jobs: LocalJobs, *overrides: str, resume: bool = False) -> JobOutcome:
    return run_job(JobText(text, overrides), jobs, resume=resume)


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_a_job_ends_with_its_result_report_and_state(job_text: str, jobs: LocalJobs, tmp_path: Path):
    assert run(job_text, jobs) == JobOutcome("succeeded", 6, "6 steps done")
    status = jobs.status("run")
    assert (status.state, status.step, status.num_steps, status.kind) == ("succeeded", 6, 6, "joint")
    assert jobs.list() == [status]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "paired bootstrap" in report
    assert "loss/retriever" in report
    assert not re.search(r"<script|https?://", report)
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["data"]["train"]["num_questions"] + manifest["data"]["held_out"]["num_questions"] == 11
    assert manifest["config"]["tables"]["joint"]["seed"] == 3
    assert (tmp_path / "run" / "job.toml").read_text() == job_text


def test_a_signal_stops_a_job_and_it_resumes_to_the_same_log(job_text: str, jobs: LocalJobs, tmp_path: Path):
    steps = "joint.optim.steps=16"
    whole = tmp_path / "whole"
    run(job_text, jobs, steps, f"out={whole}")

    def interrupt() -> None:
        while not JobFolder(tmp_path / "run").num_done:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    stopped = run(job_text, jobs, steps)
    assert stopped.state == "stopped"
    assert 0 < stopped.steps < 16
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert jobs.status("run").state == "stopped"
    with pytest.raises(JobError, match="pass --resume"):
        run(job_text, jobs, steps)
    assert run(job_text, jobs, steps, resume=True).state == "succeeded"
    assert lines(tmp_path / "run", "metrics") == lines(whole, "metrics")
    record = JobFolder(tmp_path / "run").record()
    assert record is not None
    assert record.attempts == 2
    with pytest.raises(JobError, match="nothing to resume"):
        run(job_text, jobs, steps, resume=True)


def test_two_jobs_in_one_folder_are_refused(job_text: str, jobs: LocalJobs, tmp_path: Path):
    with (
        JobFolder(tmp_path / "run").held(jobs.folder / "locks"),
        pytest.raises(JobError, match=r"output folder '.*run' is in use by job 'run' \(process \d+ on"),
    ):
        run(job_text, jobs)


def test_two_jobs_on_one_library_are_refused(jobs: LocalJobs, tmp_path: Path):
    library = tmp_path / "library.jsonl"
    library.write_text('{"name": "a", "text": "The Oslo lighthouse was built in 1897."}\n')
    other = JobFolder(tmp_path / "other")
    text = f"""
        kind = "mine"
        out = "{tmp_path / "run"}"
        [data.train]
        kind = "library"
        path = "{library}"
        [data.synthesis]
    """
    with (
        other.held(jobs.folder / "locks", library),
        pytest.raises(JobError, match=r"library '.*library\.jsonl' is in use by job 'other'"),
    ):
        run(text, jobs)
    assert JobFolder(tmp_path / "run").record() is None


def test_a_name_in_use_for_another_folder_is_refused(job_text: str, jobs: LocalJobs, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere" / "run"
    elsewhere.mkdir(parents=True)
    JobFolder(elsewhere).begin(JobRecord(name="run", kind="joint", state="starting", num_steps=1))
    jobs.register(elsewhere)
    with pytest.raises(JobError, match="a job 'run' is known in"):
        run(job_text, jobs)


def test_what_does_not_fit_is_refused_before_it_starts(job_text: str, jobs: LocalJobs, tmp_path: Path):
    with pytest.raises(OutOfResources, match=r"ranks.memory_gib has 0.10 GiB: .* GiB are missing"):
        run(job_text, jobs, "ranks.memory_gib=0.1")
    status = jobs.status("run")
    assert status.state == "failed"
    assert "are missing" in status.message
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert run(job_text, jobs, resume=True).state == "succeeded"


def test_failures_are_kept_with_the_job(job_text: str, jobs: LocalJobs, lookup_file: Path):
    with pytest.raises(DataError, match="missing"):
        run(job_text.replace(str(lookup_file), "nowhere.json"), jobs)
    assert "nowhere.json" in jobs.status("run").message
    with pytest.raises(JobError, match="no job 'walk' here; known: run"):
        jobs.status("walk")
    with pytest.raises(ConfigError, match="kind must be one of"):
        run("", jobs)


def test_the_configuration_for_a_cpu_runs_as_it_is_shipped(
    jobs: LocalJobs, tmp_path: Path, lookup_file: Path, tiny_models: tuple[Path, Path]
):
    text = (ROOT / "training" / "configs" / "joint-cpu.toml").read_text(encoding="utf-8")
    outcome = run(
        text,
        jobs,
        f"out={tmp_path / 'cpu'}",
        f"data.train.path={lookup_file}",
        f"joint.reader.model={tiny_models[1]}",
        "joint.optim.steps=2",
        "joint.optim.warmup_steps=1",
    )
    assert outcome == JobOutcome("succeeded", 2, "2 steps done")


def test_mined_negatives_are_trained_on(job_text: str, jobs: LocalJobs, tmp_path: Path, lookup_file: Path):
    text = f"""
        kind = "mine"
        out = "{tmp_path / "mined"}"
        [data.train]
        kind = "squad"
        path = "{lookup_file}"
        [mine]
        first_rank = 0
        last_rank = 5
        num_negatives = 2
        relative_margin = "none"
    """
    mined = run(text, jobs)
    assert mined.state == "succeeded"
    assert "random negatives for 11 questions" in mined.message
    negatives = tmp_path / "mined" / "negatives.json"
    assert len(json.loads(negatives.read_text())["negatives"]) == 11
    mixed = job_text.replace("dev_share = 0.3", f'negatives = "{negatives}"')
    assert run(mixed, jobs, "joint.optim.steps=1", "joint.loss.contrastive_weight=1.0").state == "succeeded"
