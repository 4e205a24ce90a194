"""`graft up` as a person runs it: starts, answers, drains, stops, leaves nothing; and clear refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from otlp_receiver import OtlpReceiver, otlp_receiver

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
START_S = 180


class Up:
    """A `graft up` process and everything it printed."""

    def __init__(self, home: Path, *arguments: str, variables: dict[str, str] | None = None) -> None:
        self.log = home.parent / f"{home.name}.log"
        environment = os.environ | {"GRAFT_HOME": str(home)} | (variables or {})
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "graft.cli", "up", "--set", "server.port=0", *arguments],
                stdout=log, stderr=log, cwd=ROOT, env=environment,
            )  # fmt: skip

    def wait_ready(self) -> str:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if found := re.search(r"open (http://\S+)", self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        raise AssertionError(f"not ready within {START_S} s:\n{self.log.read_text()}")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def ended():
    """Processes to end whatever happens."""
    started: list[Up] = []
    yield started
    for up in started:
        if up.process.poll() is None:
            children = up.descendants()
            up.process.kill()
            for child in children:
                if child.is_running():
                    child.kill()
            up.process.wait()


TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def assert_one_trace_over_all_processes(collector: OtlpReceiver) -> None:
    """The spans of one question hang together, from the caller's to the engine's."""
    spans = {span.name: span for span in collector.spans if span.trace_id == TRACE}
    run, node, searched = spans["invoke_workflow rag"], spans["node retrieve"], spans["retrieval"]
    (generated,) = [span for name, span in spans.items() if name.startswith("chat ")]
    request = spans["POST /v1/ask"]
    assert request.parent_id == CALLER
    assert run.parent_id == request.span_id
    assert node.parent_id == run.span_id
    assert searched.parent_id == node.span_id
    assert generated.parent_id == spans["node generate"].span_id
    assert spans["node generate"].parent_id == run.span_id
    assert (run.part, generated.part) == ("server", "generator")
    assert generated.attributes["gen_ai.usage.input_tokens"] > 0
    sent = b"".join(collector.bodies)
    for words in (b"QLoRA", b"quantiz", b"Quantiz"):
        assert words not in sent


@pytest.fixture
def collector():
    with otlp_receiver() as receiver:
        yield receiver


@pytest.mark.timeout(600)
def test_up_answers_reuses_traces_and_leaves_nothing(tmp_path, ended, collector):
    home = tmp_path / "home"
    up = Up(home, variables={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    ended.append(up)
    url = up.wait_ready()
    for name in ("ray", "retrieval", "library", "generator", "server"):
        assert re.search(rf"{name} +\.\.\.", up.log.read_text()), f"stage {name} was silent"
    traced = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    answered = httpx.post(f"{url}/v1/ask", json={"question": "What is QLoRA?"}, headers=traced, timeout=120)
    assert answered.json()["citations"]
    assert TRACE in answered.headers["traceresponse"]
    assert "Graft" in httpx.get(url).text

    second = subprocess.run(
        [sys.executable, "-m", "graft.cli", "up"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"GRAFT_HOME": str(home)}, timeout=60,
    )  # fmt: skip
    assert second.returncode == 0
    assert f"already running at {url}" in second.stderr

    processes = up.descendants()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0, up.log.read_text()
    gone, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    assert len(gone) >= 4
    assert "Traceback" not in up.log.read_text()
    assert not (home / "platform.json").exists()
    assert_one_trace_over_all_processes(collector)


def command(home: Path, *arguments: str) -> str:
    """Return what a command prints that runs on a home folder of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"GRAFT_HOME": str(home)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def long_stream(url: str, begun: threading.Event) -> tuple[str | None, str]:
    """Return why a long stream ended, and its last line."""
    with httpx.Client(base_url=url, timeout=120) as client:
        model = client.get("/v1/models").json()["data"][-1]["id"]
        asked = {"model": model, "messages": [{"role": "user", "content": "long"}], "stream": True}
        asked |= {"max_tokens": 1500, "temperature": 2.0, "seed": 5}
        finish, last = None, ""
        with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            for last in filter(None, response.iter_lines()):
                if last.startswith("data: {"):
                    choice = json.loads(last[6:])["choices"][0]
                    finish = choice["finish_reason"] or finish
                    if choice["delta"].get("content"):
                        begun.set()
        return finish, last


def assert_refuses_while_it_drains(url: str) -> None:
    """Wait until the platform drains, and see what it tells who comes then."""
    end = time.monotonic() + 60
    while (health := httpx.get(f"{url}/healthz", timeout=60)).json()["status"] != "draining":
        assert time.monotonic() < end, "it does not drain"
        time.sleep(0.05)
    assert health.status_code == 503
    refused = httpx.post(f"{url}/v1/ask", json={"question": "What is QLoRA?"}, timeout=60)
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.timeout(900)
def test_kill_9_loses_nothing_acknowledged_and_blocks_no_later_start(tmp_path, ended):
    home, names = tmp_path / "home", {f"kettle-{number}.txt" for number in range(30)}
    first = Up(home, "--set", "sample_library=false")
    ended.append(first)
    url = first.wait_ready()
    for name in names:
        added = httpx.post(
            f"{url}/v1/documents",
            params={"name": name, "library": "kill"},
            content=f"The {name} kettle is kept.".encode(),
            timeout=60,
        )
        assert added.status_code == 202
    left = first.descendants()
    first.process.kill()
    first.process.wait()

    second = Up(home, "--set", "sample_library=false", "--set", "serving.num_replicas=2")
    ended.append(second)
    url = second.wait_ready()
    assert "2 of 2 replicas" in command(home, "status")
    assert 'graft_generator_running{replica="1"}' in httpx.get(f"{url}/metrics", timeout=60).text
    end, states = time.monotonic() + 120, {}
    while set(states.values()) != {"ready"} and time.monotonic() < end:
        found = httpx.get(f"{url}/v1/documents", params={"library": "kill"}, timeout=60).json()["documents"]
        states = {document["name"]: document["state"] for document in found}
        time.sleep(0.2)
    assert states == dict.fromkeys(names, "ready")

    processes = second.descendants()
    with ThreadPoolExecutor() as threads:
        begun = threading.Event()
        streaming = threads.submit(long_stream, url, begun)
        assert begun.wait(60)
        stopping = threads.submit(command, home, "down")
        assert_refuses_while_it_drains(url)
        finish, last = streaming.result(timeout=120)
        assert finish == "length", "a stream that was under way was cut off"
        assert last == "data: [DONE]"
        assert f"stopped process {second.process.pid}" in stopping.result()
    assert second.process.wait(10) == 0, second.log.read_text()
    assert "all that was under way has ended" in second.log.read_text()
    assert "Traceback" not in second.log.read_text()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, [process.cmdline() for process in alive]

    # No platform runs: the command starts what it needs, and stops it again.
    asked = ("kettle kept", "--library", "kill", "--json", "--set", "sample_library=false")
    answer = json.loads(command(home, "ask", *asked))
    assert {citation["document"] for citation in answer["citations"]} <= names
    assert answer["citations"]
    assert not (home / "platform.json").exists()
    # Ray's own agents notice the death of their node only after a minute.
    _, alive = psutil.wait_procs(left, timeout=120)
    assert not alive, [process.cmdline() for process in alive]


@pytest.mark.timeout(600)
def test_interrupt_while_starting_leaves_nothing(tmp_path, ended):
    up = Up(tmp_path / "home", "--set", "sample_library=false")
    ended.append(up)
    end = time.monotonic() + START_S
    while "generator" not in up.log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    processes = up.descendants()
    up.process.send_signal(signal.SIGINT)
    up.process.wait(90)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, [process.cmdline() for process in alive]


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes that were started for a home folder."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("GRAFT_HOME") == str(home)
    ]


def refused(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", "up", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"GRAFT_HOME": str(home)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_port_in_use_is_refused_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(tmp_path / "home", "--set", f"server.port={port}")
    assert f"port {port}" in message
    assert "--set server.port=" in message
    assert "ray" not in message


def test_open_address_without_token_is_refused(tmp_path):
    assert "set GRAFT_TOKEN" in refused(tmp_path / "home", "--set", "server.host=0.0.0.0")


def test_wrong_key_is_refused_with_the_right_one(tmp_path):
    assert "did you mean agents.k_passages?" in refused(tmp_path / "home", "--set", "agents.k_pasages=3")


def test_home_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "GRAFT_HOME" in refused(tmp_path / "file" / "home", "--set", "server.port=0")


@pytest.mark.timeout(300)
def test_missing_model_is_refused_and_what_had_started_is_stopped(tmp_path):
    home = tmp_path / "home"
    message = refused(home, "--set", "server.port=0", "--set", f"serving.model={tmp_path / 'absent'}")
    assert "absent" in message
    _, alive = psutil.wait_procs(processes_of(home), timeout=20)
    assert not alive, [process.cmdline() for process in alive]


def test_down_without_a_platform_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", "down"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"GRAFT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert "no platform runs" in done.stdout
    assert json.dumps(str(tmp_path))[1:-1] in done.stdout
