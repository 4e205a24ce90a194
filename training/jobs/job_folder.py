"""A job's folder: who holds it, how far it is, how it is asked to stop; files that any process can read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from training.errors import JobError
from training.index.durable_files import write_durably
from training.jobs.job_status import ENDED, JobState, JobStatus
from training.jobs.log_lines import log_lines
from training.joint.run_log import METRICS

STATE = "job.json"
OUTPUT = "output.txt"
CONFIG = "job.toml"
LOCK = "lock"
STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What a job's state file holds."""

    name: str
    """Name of the job."""
    kind: str
    """Kind of its configuration."""
    state: JobState
    """Where it stood when it last said so."""
    num_steps: int
    """Steps of the whole job."""
    message: str = ""
    """Why it ended."""
    pid: int = 0
    """Process that runs or ran it."""
    process_started_s: float = 0.0
    """Start time of that process, so that a pid used again is not taken for it."""
    host: str = ""
    """Machine of that process."""
    attempts: int = 1
    """Times it was started."""
    started_at: str = ""
    """UTC of the first start, ISO 8601."""
    cwd: str = ""
    """Working folder, which relative paths of the configuration begin at."""
    overrides: tuple[str, ...] = ()
    """What was set besides the file."""


class JobFolder:
    """Reads and writes the state of one job."""

    def __init__(self, out: Path) -> None:
        """Point at a folder, without touching the disk."""
        self.out = out

    @contextmanager
    def held(self, locks: Path, library: Path | None = None) -> Iterator[None]:
        """Hold the folder, and the library that is trained on, for one job.

        Args:
            locks: Where the locks of libraries are, the same for all jobs of a machine.
            library: Records that the job learns from.

        Raises:
            JobError: Another job holds one of them, or the folder cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(self._locked(self.out / LOCK, f"output folder '{self.out}'"))
            if library is not None:
                digest = hashlib.sha256(str(library.resolve()).encode()).hexdigest()[:16]
                stack.enter_context(self._locked(locks / f"library-{digest}.lock", f"library '{library}'"))
            yield

    @contextmanager
    def _locked(self, path: Path, what: str) -> Iterator[None]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise JobError(f"'{path}' cannot be written ({error.strerror}); choose another folder") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                handle.seek(0)
                holder = handle.read().strip() or "of a process that has not said its name yet"
                raise JobError(
                    f"the {what} is in use by job {holder}; wait for it, stop it with `graft jobs stop`, "
                    "or choose another"
                ) from error
            handle.truncate(0)
            handle.write(f"{self.out.name!r} (process {os.getpid()} on {socket.gethostname()})")
            handle.flush()
            yield

    def begin(self, record: JobRecord) -> None:
        """Write the state of a job that this process starts to run, and forget what it was asked before."""
        before = self.record()
        self.stop_file.unlink(missing_ok=True)
        self._write(
            replace(
                record,
                state="running",
                pid=os.getpid(),
                process_started_s=psutil.Process().create_time(),
                host=socket.gethostname(),
                attempts=1 if before is None else before.attempts + 1,
                started_at=_now() if before is None else before.started_at,
            )
        )

    def end(self, state: JobState, message: str) -> None:
        """Write how the job ended."""
        record = self.record()
        if record is not None:
            self._write(replace(record, state=state, message=message))

    def record(self) -> JobRecord | None:
        """Return the state file's content, or None where there is none that can be read."""
        try:
            values = json.loads((self.out / STATE).read_text(encoding="utf-8"))
            known = {one.name for one in fields(JobRecord)}
            values = {key: value for key, value in values.items() if key in known}
            return JobRecord(**{**values, "overrides": tuple(values.get("overrides", ()))})
        except (OSError, ValueError, TypeError):
            return None

    def status(self) -> JobStatus | None:
        """Return the job as it is now: one whose process is gone has died; None where there is no job."""
        record = self.record()
        if record is None:
            return None
        state, message = record.state, record.message
        if state not in ENDED and not _is_alive(record):
            state, message = "died", "its process is gone; resume it from the newest checkpoint"
        return JobStatus(
            name=record.name,
            kind=record.kind,
            state=state,
            out=str(self.out),
            step=self.num_done,
            num_steps=record.num_steps,
            message=message,
            started_at=record.started_at,
        )

    def has_ended(self) -> bool:
        """Return whether the job has ended and its process, which tells of that last, is gone."""
        record = self.record()
        if record is None or record.host != socket.gethostname():
            return record is None or record.state in ENDED
        return not is_running(record.pid, record.process_started_s)

    @property
    def num_done(self) -> int:
        """Return the steps that the log of metrics tells of."""
        lines = log_lines(self.out / METRICS, is_tail=True)
        return int(lines[-1]["step"]) + 1 if lines else 0

    @property
    def stop_file(self) -> Path:
        """Return the file whose presence asks the job to save and end; any node may make it."""
        return self.out / STOP

    def _write(self, record: JobRecord) -> None:
        content = json.dumps(asdict(record), indent=1).encode()
        write_durably(self.out / STATE, lambda file: file.write(content))


def _is_alive(record: JobRecord) -> bool:
    if record.host != socket.gethostname():
        return True  # Of another machine nothing can be known from here.
    return is_running(record.pid, record.process_started_s)


def is_running(pid: int, started_s: float | None = None) -> bool:
    """Return whether a process runs, and is the one that was started then."""
    try:
        process = psutil.Process(pid)
        is_same = started_s is None or abs(process.create_time() - started_s) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
