"""The record of the platform that runs from a home folder, and the lock that keeps it the only one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from graft.errors import StartError

RECORD = "platform.json"
STOP_PATIENCE_S = 60.0
"""How long stopping may take, beyond a drain."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Running:
    """Where a running platform can be reached."""

    url: str
    """Base address of its server."""
    pid: int
    """Process that owns it."""
    process_started_s: float
    """Start time of that process, so that a reused pid is not mistaken for it."""
    drain_s: float = 0.0
    """How long it may wait for requests under way when it is told to stop."""


def find_running(home: Path) -> Running | None:
    """Return the platform that runs from `home`, or None; a stale record counts as none."""
    try:
        running = Running(**json.loads((home / RECORD).read_text(encoding="utf-8")))
        process = psutil.Process(running.pid)
        is_it = abs(process.create_time() - running.process_started_s) < 1.0
        return running if is_it and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, TypeError, psutil.NoSuchProcess):
        return None


def write_record(home: Path, url: str, drain_s: float = 0.0) -> None:
    """Publish this process as the platform of `home`, which drains for so long before it stops."""
    running = Running(url, os.getpid(), psutil.Process().create_time(), drain_s)
    temporary = home / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(asdict(running)), encoding="utf-8")
    temporary.replace(home / RECORD)


def remove_record(home: Path) -> None:
    """Withdraw the record."""
    (home / RECORD).unlink(missing_ok=True)


@contextmanager
def only_platform(home: Path) -> Iterator[None]:
    """Hold the home folder for one platform.

    Raises:
        StartError: Another process holds it, or the folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = (home / "lock").open("a+")
    except OSError as error:
        raise StartError(
            f"home folder {home} cannot be written ({error.strerror}); set GRAFT_HOME to another"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise StartError(
                f"another platform (process {handle.read().strip() or 'unknown'}) uses {home}; "
                "stop it with `graft down`, or set GRAFT_HOME to another folder"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def stop_running(home: Path, *, timeout_s: float = STOP_PATIENCE_S) -> Running | None:
    """Stop the platform that runs from `home` and wait until its process is gone.

    Requests under way may end first; a second call meanwhile ends them at once.

    Args:
        home: Its home folder.
        timeout_s: Patience, beyond the time it may drain for.

    Returns:
        What was running, or None.

    Raises:
        StartError: It did not stop in time; the message names the process.
    """
    running = find_running(home)
    if running is None:
        return None
    timeout_s += running.drain_s
    end_s = time.monotonic() + timeout_s
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(running.pid)
        process.terminate()
        # One that its parent has not reaped is gone all the same; its pid may stay for ever.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end_s:
                raise StartError(
                    f"process {running.pid} did not stop within {timeout_s:.0f} s; "
                    f"end it with `kill -9 {running.pid}`"
                )
            time.sleep(_POLL_S)
    return running
