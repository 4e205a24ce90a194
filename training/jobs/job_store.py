"""The jobs of this machine: started as processes of their own, found again by their folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.errors import JobError
from training.index.durable_files import write_durably
from training.jobs.job_config import load_job
from training.jobs.job_folder import CONFIG, OUTPUT, JobFolder, is_running
from training.jobs.job_status import ENDED, JobStatus

_POLL_S = 0.2
_START_S = 120.0
"""Longest wait for the process to say that it runs; importing torch takes seconds on an idle machine."""


def default_jobs_folder() -> Path:
    """Return where this user's jobs are listed: `jobs` in the platform's home folder."""
    return Path(os.environ.get("GRAFT_HOME") or Path.home() / ".graft") / "jobs"


class LocalJobs:
    """A `Jobs` over processes of this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use a folder of pointers to jobs; None takes the user's."""
        self.folder = folder or default_jobs_folder()

    def register(self, out: Path) -> None:
        """List a job by the name of its folder.

        Raises:
            JobError: Another folder has that name already.
        """
        pointer = self.folder / f"{out.name}.json"
        known = self._target(pointer)
        if known is not None and known != out and JobFolder(known).record() is not None:
            raise JobError(
                f"a job {out.name!r} is known in '{known}'; name the folder of this one differently, "
                f"or delete '{pointer}'"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"out": str(out)}).encode()
        write_durably(pointer, lambda file: file.write(content))

    def submit(self, config: Path, overrides: Sequence[str] = ()) -> JobStatus:
        """Start a job in a process of its own; see `Jobs`."""
        job = load_job(config, overrides).resolved()
        found = JobFolder(job.out).status()
        if found is not None:
            remedy = "resume it" if found.state in ("stopped", "died", "failed") else "look at it"
            raise JobError(
                f"'{job.out}' holds a job already ({found.state}); {remedy} with `graft jobs`, or choose "
                "another out"
            )
        return self._start(job.out, config.resolve(), overrides, Path.cwd(), resume=False)

    def list(self) -> list[JobStatus]:
        """Return the jobs whose folders are still there, newest first."""
        targets = [self._target(pointer) for pointer in self.folder.glob("*.json")]
        found = [JobFolder(out).status() for out in targets if out is not None]
        return sorted((one for one in found if one is not None), key=lambda one: one.started_at, reverse=True)

    def status(self, name: str) -> JobStatus:
        """Return a job by name or folder; see `Jobs`."""
        found = self._folder(name).status()
        if found is None:
            raise JobError(f"the state of job {name!r} in '{self._folder(name).out}' cannot be read")
        return found

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield what a job printed; see `Jobs`."""
        folder = self._folder(name)
        path = folder.out / OUTPUT
        if not path.exists():
            raise JobError(f"job {name!r} was not started in the background: its output went to its terminal")
        with path.open(encoding="utf-8", errors="replace") as file:
            while True:
                is_over = not follow or folder.has_ended()
                if text := file.read():
                    yield text
                elif is_over:
                    return
                else:
                    time.sleep(_POLL_S)

    def stop(self, name: str) -> JobStatus:
        """Ask a job to save and end; see `Jobs`."""
        folder = self._folder(name)
        status = self.status(name)
        if status.state not in ENDED:
            folder.stop_file.touch()
        return status

    def resume(self, name: str) -> JobStatus:
        """Start a job again; see `Jobs`."""
        folder = self._folder(name)
        status, record = self.status(name), folder.record()
        if status.state not in ENDED:
            raise JobError(f"job {name!r} is {status.state}; stop it first")
        if status.state == "succeeded" or record is None:
            raise JobError(f"job {name!r} is complete: there is nothing to resume")
        return self._start(folder.out, folder.out / CONFIG, record.overrides, Path(record.cwd), resume=True)

    def _start(
        self, out: Path, config: Path, overrides: Sequence[str], cwd: Path, *, resume: bool
    ) -> JobStatus:
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "training", str(config), "--jobs", str(self.folder.resolve())]
        command += [part for override in overrides for part in ("--set", override)]
        command += ["--resume"] if resume else []
        output = out / OUTPUT
        offset = output.stat().st_size if output.exists() else 0
        # A shell in between gives the job another parent: it outlives this process, and is no zombie in it.
        started = subprocess.run(
            ["sh", "-c", '"$@" </dev/null >>"$0" 2>&1 & echo $!', str(output), *command],
            stdout=subprocess.PIPE,
            cwd=cwd,
            start_new_session=True,
            check=True,
        )
        pid = int(started.stdout)
        folder = JobFolder(out)
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s:
            is_over = not is_running(pid)
            record = folder.record()
            if record is not None and record.pid == pid:
                return self.status(str(out))
            if is_over:
                said = output.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
                raise JobError(
                    said[-1].removeprefix("training: ") if said else "the job ended without a word"
                )
            time.sleep(_POLL_S)
        os.kill(pid, signal.SIGKILL)
        raise JobError(f"the job did not start within {_START_S:g} s; see '{output}'")

    def _folder(self, name: str) -> JobFolder:
        out = self._target(self.folder / f"{name}.json")
        if out is None and JobFolder(Path(name)).record() is not None:
            out = Path(name).resolve()
        if out is None:
            known = ", ".join(sorted(path.stem for path in self.folder.glob("*.json"))) or "none"
            raise JobError(f"there is no job {name!r} here; known: {known}. A folder of a job is a name too")
        return JobFolder(out)

    @staticmethod
    def _target(pointer: Path) -> Path | None:
        try:
            return Path(json.loads(pointer.read_text(encoding="utf-8"))["out"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
