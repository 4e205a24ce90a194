"""Jobs on a Ray cluster through its job server: submitted, followed, stopped, resumed, refused by name."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from tests.small_job import job_toml, write_lookup_set
from training.errors import ConfigError, JobError
from training.jobs import ClusterJobs, JobStatus

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a" * 64
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    # Ray's client passes ssl=None on (ray 2.60 under aiohttp 3.14).
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)
    pytest.fail(f"the cluster did not start (exit code {process.poll()})")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of its own: the session's Ray has no job server."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in NAMES},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GRAFT_HOME": str(tmp_path_factory.mktemp("home")),
    }
    options = {
        "port": 0,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        # The agent that takes jobs does without its port, and without a word, where another Ray holds it.
        "dashboard-agent-listen-port": 0,
        "ray-client-server-port": free_port(),
        "num-cpus": 2,
        "object-store-memory": 80 * 2**20,
    }
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # Paths of sockets must be short.
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--{name}={value}" for name, value in options.items()] + [f"--temp-dir={folder}"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_listening(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=120)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def wait_for(jobs: ClusterJobs, name: str, is_there: Callable[[JobStatus], bool]) -> JobStatus:
    end_s = time.monotonic() + 400
    while not is_there(status := jobs.status(name)):
        assert time.monotonic() < end_s, status
        assert status.state != "failed", "".join(jobs.logs(name))
        time.sleep(0.3)
    return status


def test_a_job_is_submitted_stopped_and_resumed(cluster: str, token: None, tmp_path: Path):
    encoder, reader = build_tiny_encoder(tmp_path / "encoder"), build_tiny_model(tmp_path / "reader")
    config, out = tmp_path / "job.toml", tmp_path / "run"
    config.write_text(job_toml(encoder, reader, write_lookup_set(tmp_path / "lookup.json"), out, steps=60))
    jobs = ClusterJobs(cluster)
    submitted = jobs.submit(config, ["joint.checkpoint.every_steps=1000"])
    assert (submitted.name, submitted.kind, submitted.out) == ("run", "joint", str(out))
    assert submitted.num_steps == 60
    with pytest.raises(JobError, match=r"a job 'run' is (starting|running)"):
        jobs.submit(config)
    wait_for(jobs, "run", lambda _: (out / "metrics.jsonl").exists())
    with pytest.raises(JobError, match="stop it first"):
        jobs.resume("run")
    jobs.stop("run")
    assert (
        wait_for(jobs, "run", lambda status: status.state not in ("starting", "running")).state == "stopped"
    )
    [saved] = (out / "checkpoints").glob("step-*")
    assert 0 < int(saved.name.removeprefix("step-")) < 60
    jobs.resume("run")
    assert [one.name for one in jobs.list()] == ["run"]
    said = "".join(jobs.logs("run", follow=True))
    assert "succeeded: 60 steps done" in said
    assert wait_for(jobs, "run", lambda status: status.state != "running").state == "succeeded"
    with pytest.raises(JobError, match="nothing to resume"):
        jobs.resume("run")
    with pytest.raises(JobError, match="no job 'walk' on"):
        jobs.status("walk")


def test_relative_paths_are_refused_before_anything_is_sent(cluster: str, token: None, tmp_path: Path):
    config = tmp_path / "job.toml"
    config.write_text(
        'kind = "mine"\nout = "runs/x"\n[data.train]\nkind = "squad"\npath = "/data/train.json"\n'
    )
    with pytest.raises(ConfigError, match="out='runs/x' must be absolute"):
        ClusterJobs(cluster).submit(config)


def test_a_wrong_or_missing_token_is_said_to_be_one(
    cluster: str, token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    with pytest.raises(JobError, match=r"did not accept the token.*RAY_AUTH_TOKEN"):
        ClusterJobs(cluster)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(JobError, match="did not accept the token"):
        ClusterJobs(cluster)
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert isinstance(ClusterJobs(cluster).list(), list)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(JobError, match="none cannot be read"):
        ClusterJobs(cluster)


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "nonsense://x"])
def test_an_address_where_nobody_answers_is_said_to_be_one(token: None, address: str):
    with pytest.raises(JobError, match=r"no Ray job server answers at|refused"):
        ClusterJobs(address.format(port=free_port()))
