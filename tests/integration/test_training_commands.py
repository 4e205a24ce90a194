"""`graft train` and `graft jobs`: a job of its own process, found again, told of, stopped and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from tests.small_job import job_toml, write_lookup_set

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def graft(tmp_path: Path):
    def graft(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "graft.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "GRAFT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    return graft


def test_a_job_is_started_listed_stopped_and_resumed(graft, tmp_path: Path):
    encoder, reader = build_tiny_encoder(tmp_path / "encoder"), build_tiny_model(tmp_path / "reader")
    config, out = tmp_path / "job.toml", tmp_path / "lookup"
    config.write_text(job_toml(encoder, reader, write_lookup_set(tmp_path / "data.json"), out, steps=60))
    steps = ("--set", "joint.checkpoint.every_steps=1000")
    assert "job 'lookup' is running" in graft("train", str(config), *steps)
    assert "holds a job already (running)" in graft("train", str(config), *steps, code=1)
    assert "is running; stop it first" in graft("jobs", "resume", "lookup", code=1)
    assert "saves at the end of its step" in graft("jobs", "stop", "lookup")
    for _ in range(600):
        [found] = json.loads(graft("jobs", "status", "lookup", "--json"))
        if found["state"] != "running":
            break
        time.sleep(0.5)
    assert found["state"] == "stopped"
    assert 0 < found["step"] < 60
    assert "job 'lookup' is running" in graft("jobs", "resume", "lookup")
    assert "succeeded: 60 steps done" in graft("jobs", "logs", "lookup", "--follow")
    [listed] = json.loads(graft("jobs", "list", "--json"))
    assert (listed["name"], listed["state"], listed["step"]) == ("lookup", "succeeded", 60)
    assert "60/60" in graft("jobs", "list")
    assert "nothing to resume" in graft("jobs", "resume", "lookup", code=1)
    assert graft("jobs", "report", str(out)).strip() == str(out / "report.html")


def test_a_job_runs_under_torchrun_on_two_ranks(tmp_path: Path):
    encoder, reader = build_tiny_encoder(tmp_path / "encoder"), build_tiny_model(tmp_path / "reader")
    config, out = tmp_path / "job.toml", tmp_path / "two"
    config.write_text(job_toml(encoder, reader, write_lookup_set(tmp_path / "data.json"), out, steps=3))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "training", str(config), "--jobs", str(tmp_path / "jobs")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "job.json").read_text())["state"] == "succeeded"
    [saved] = (out / "checkpoints").glob("step-3/manifest.json")
    assert json.loads(saved.read_text())["world_size"] == 2


def test_what_cannot_be_run_is_one_clear_line(graft, tmp_path: Path):
    config = tmp_path / "job.toml"
    config.write_text(
        f'kind = "mine"\nout = "{tmp_path / "run"}"\n[data.train]\nkind = "squad"\npath = "nowhere.json"\n'
    )
    assert "did you mean 'train'" in graft("train", str(config), "--set", "data.trian.kind=nq", code=1)
    # The process starts, says why it cannot go on, and the job keeps it.
    graft("train", str(config))
    for _ in range(600):
        told = graft("jobs", "status", "run")
        if "failed" in told:
            break
        time.sleep(0.5)
    assert "nowhere.json is missing" in told
    assert "there is no job 'walk' here; known: run" in graft("jobs", "logs", "walk", code=1)
    assert "no Ray job server answers" in graft("jobs", "list", "--address", "http://127.0.0.1:9", code=1)
