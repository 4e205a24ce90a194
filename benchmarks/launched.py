"""A `graft up` process under measurement: started in a home of its own, asked, weighed, and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from graft.running import find_running

GRAFT = Path(sys.executable).with_name("graft")
"""The installed command."""
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
SETTLE_S = 5.0
"""How long Ray's daemons may outlive the process that started them."""
STAGE_DONE = re.compile(r"^\s*(\w+)\s+([\d.]+) s\s", re.MULTILINE)


class LaunchedPlatform:
    """`graft up` on a free port, as the leader of a process group like a terminal's.

    Args:
        home: Its home folder; caches of libraries go there too, so that an empty home is a first start.
        model: `serving.model`.
    """

    def __init__(self, home: Path, model: str) -> None:
        self.home = home
        self._log = home / "up.log"
        home.mkdir(parents=True, exist_ok=True)
        hub = Path.home() / ".cache" / "huggingface"
        environment = {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(hub),
            **os.environ,
            "GRAFT_HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        command = [str(GRAFT), "up", "--set", "server.port=0", "--set", f"serving.model={model}"]
        self.began_s = time.monotonic()
        with self._log.open("wb") as log:
            # Its own folder, so that no `graft.toml` of the caller's counts.
            self.process = subprocess.Popen(
                command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_listening(self) -> str:
        """Return the address once the server accepts requests.

        Raises:
            RuntimeError: It ended or did not come up in time; the message holds the end of its log.
        """
        while self.process.poll() is None and time.monotonic() - self.began_s < START_TIMEOUT_S:
            if running := find_running(self.home):
                self.url = running.url
                return self.url
            time.sleep(0.02)
        raise RuntimeError(f"`graft up` does not serve; the end of its log:\n{self.log_end()}")

    def ask(self, question: str) -> str:
        """Return the complete answer to a question.

        Raises:
            RuntimeError: There is none.
        """
        response = httpx.post(
            f"{self.url}/v1/ask", json={"question": question}, timeout=ANSWER_TIMEOUT_S, trust_env=False
        )
        body = response.json()
        if (
            response.status_code != httpx.codes.OK
            or body["stop_reason"] == "error"
            or not body["answer"].strip()
        ):
            raise RuntimeError(f"no answer to {question!r}: {response.status_code} {body}")
        return body["answer"]

    def stages_s(self) -> dict[str, float]:
        """Return the seconds each stage of the start took, as it printed them."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return {name: float(seconds) for name, seconds in STAGE_DONE.findall(text)}

    def log_end(self) -> str:
        """Return the last lines it printed."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])

    def processes(self) -> list[psutil.Process]:
        """Return the process and everything below it, Ray's daemons and workers included."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pss_bytes(self) -> dict[str, int]:
        """Return proportional memory by process name; pages shared by n processes count 1/n in each."""
        sizes: dict[str, int] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that ended meanwhile
                name = process.name()
                sizes[name] = sizes.get(name, 0) + process.memory_full_info().pss
        return sizes

    def stop(self) -> None:
        """Press Ctrl-C and wait until everything is gone.

        Raises:
            RuntimeError: A process of it was left running (it is ended), or it reported a failure.
        """
        everything = self.processes()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)  # a terminal signals the whole group
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        _, left = psutil.wait_procs(everything, timeout=SETTLE_S)
        names = [f"{process.pid} {process.name()}" for process in left if _lives(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if names:
            raise RuntimeError(f"Ctrl-C left processes running: {', '.join(names)}\n{self.log_end()}")
        if self.process.returncode != 0:
            raise RuntimeError(f"`graft up` ended with {self.process.returncode}:\n{self.log_end()}")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
