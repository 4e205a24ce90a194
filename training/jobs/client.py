"""The jobs of a Ray cluster, through its job server; the same front as the jobs of this machine.

A cluster with token authentication wants a bearer token. Ray's client sends one only under
`RAY_AUTH_MODE=token`, then also that of `~/.ray/auth_token`; one that is given by `RAY_AUTH_TOKEN` or
`RAY_AUTH_TOKEN_PATH` is sent here whatever the mode, since giving it says that it is wanted.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from training.errors import ConfigError, JobError
from training.index.daemon_thread import DaemonThread
from training.jobs.job_config import parse_job
from training.jobs.job_folder import CONFIG
from training.jobs.job_status import ENDED, RESUME_ME, JobState, JobStatus

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

Value = TypeVar("Value")

_STOP_WAIT_S = 600
"""Longest time between Ray's SIGTERM and its SIGKILL: a step and a checkpoint must fit; Ray's own is 3 s."""
_AGENT_WAIT_S = 60
"""Longest wait for the agent of a node that has just started."""
_STATES: Mapping[str, JobState] = {
    "PENDING": "starting",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
_PREFIX = "graft"
"""Begins the names of what is kept with a job of ours."""


class ClusterJobs:
    """A `Jobs` over the job server of a Ray cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: Of the job server, as `http://HEAD:8265` or `HEAD:8265`; `auto` for this machine's.

        Raises:
            JobError: It cannot be reached, or wants another token.
        """
        # Ray would take an address without a scheme for that of its control store, and wait for it.
        self.address = address if "://" in address or address == "auto" else f"http://{address}"
        self._client = self._asked(lambda: _client(self.address))

    def submit(self, config: Path, overrides: Sequence[str] = ()) -> JobStatus:
        """Start a job; see `Jobs`. Every path of the configuration is one of the cluster's, so absolute."""
        try:
            text = config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} cannot be read: {error}") from error
        job = parse_job(text, overrides, str(config))
        if relative := job.relative_paths():
            raise ConfigError(
                f"{config}: {', '.join(relative)} must be absolute: a job on a cluster starts in a folder of "
                "Ray's, which is deleted with it"
            )
        attempts = self._attempts().get(job.name)
        if attempts is not None and (status := _status(_current(attempts))).state not in ENDED:
            raise JobError(
                f"a job {job.name!r} is {status.state} on {self.address}; stop it, or name the folder of "
                "this one differently"
            )
        kept = {
            "name": job.name,
            "kind": job.kind,
            "out": str(job.out),
            "num_steps": str(job.num_steps),
            "config": text,
            "overrides": shlex.join(overrides),
        }
        return self._submit(kept, resume=False)

    def list(self) -> list[JobStatus]:
        """Return the jobs that were submitted from here, newest first, each as of its last attempt."""
        found = [_status(_current(attempts)) for attempts in self._attempts().values()]
        return sorted(found, key=lambda one: one.started_at, reverse=True)

    def status(self, name: str) -> JobStatus:
        """Return a job; see `Jobs`."""
        return _status(self._details(name))

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield what a job printed; see `Jobs`."""
        job_id = str(self._details(name).submission_id)
        if not follow:
            yield self._asked(lambda: self._client.get_job_logs(job_id))
            return
        import aiohttp

        pieces: SimpleQueue[str | None] = SimpleQueue()

        async def tail() -> None:
            async for piece in self._client.tail_job_logs(job_id):
                pieces.put(piece)

        thread = DaemonThread("training-logs")
        tailing = thread.submit(lambda: asyncio.run(tail()))
        tailing.add_done_callback(lambda _: pieces.put(None))
        while (piece := pieces.get()) is not None:
            yield piece
        try:
            tailing.result()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise JobError(f"the logs of job {name!r} broke off: {error}") from error

    def stop(self, name: str) -> JobStatus:
        """Ask a job to save and end; see `Jobs`."""
        details = self._details(name)
        if _status(details).state not in ENDED:
            self._asked(lambda: self._client.stop_job(str(details.submission_id)))
        return self.status(name)

    def resume(self, name: str) -> JobStatus:
        """Start a job again; see `Jobs`."""
        details = self._details(name)
        status = _status(details)
        if status.state not in ENDED:
            raise JobError(f"job {name!r} is {status.state}; stop it first")
        if status.state == "succeeded":
            raise JobError(f"job {name!r} is complete: there is nothing to resume")
        return self._submit(_kept(details), resume=True)

    def _submit(self, kept: Mapping[str, str], *, resume: bool) -> JobStatus:
        """Start a job from what is kept with it, so that it can be started again from there."""
        command = ["python", "-m", "training", CONFIG]
        command += [part for one in shlex.split(kept["overrides"]) for part in ("--set", one)]
        command += ["--resume"] if resume else []
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(kept["config"], encoding="utf-8")
            submit = partial(
                self._client.submit_job,
                entrypoint=shlex.join(command),
                submission_id=f"{_PREFIX}-{kept['name']}-{uuid.uuid4().hex[:8]}",
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
                },
                metadata={f"{_PREFIX}_{key}": value for key, value in kept.items()},
            )
            self._asked(lambda: _once_there_is_an_agent(submit))
        return self.status(kept["name"])

    def _attempts(self) -> dict[str, builtins.list[JobDetails]]:
        """Return what was ever submitted from here, by the name of the job."""
        found: dict[str, builtins.list[JobDetails]] = {}
        for details in self._asked(self._client.list_jobs):
            if name := _kept(details).get("name"):
                found.setdefault(name, []).append(details)
        return found

    def _details(self, name: str) -> JobDetails:
        """Return the attempt of a job that counts."""
        attempts = self._attempts()
        if name not in attempts:
            known = ", ".join(sorted(attempts)) or "none"
            raise JobError(f"there is no job {name!r} on {self.address}; known: {known}")
        return _current(attempts[name])

    def _asked(self, call: Callable[[], Value]) -> Value:
        """Return what the job server answers, in our errors."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            return call()
        except AuthenticationError as error:
            raise JobError(
                f"{self.address} did not accept the token: {str(error).strip().splitlines()[0]} Set "
                "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's, which `ray get-auth-token` on its "
                "head prints"
            ) from error
        except (ConnectionError, RequestException) as error:
            raise JobError(
                f"no Ray job server answers at {self.address}; give the address of the dashboard, such as "
                "http://HEAD:8265, and see that the port can be reached from here"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise JobError(f"{self.address} refused: {error}") from error


def _once_there_is_an_agent(submit: Callable[[], Value]) -> Value:
    """Return what a submission gives; a cluster that has just started has no agent to take it yet."""
    give_up_s = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > give_up_s:
                raise RuntimeError(
                    f"no agent on the cluster's head took the job for {_AGENT_WAIT_S} s. Where several Rays "
                    "share a machine, only one has the agent's port: start this head with `ray start --head "
                    "--dashboard-agent-listen-port=0`"
                ) from error
            time.sleep(0.5)


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    token = _given_token()
    return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)


def _given_token() -> str:
    """Return the token that the environment gives, empty where it gives none; raises JobError."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise JobError(f"RAY_AUTH_TOKEN_PATH={path} cannot be read: {error.strerror}") from error


def _kept(details: JobDetails) -> dict[str, str]:
    """Return what was kept with a job of ours, empty for others."""
    beginning = f"{_PREFIX}_"
    metadata = details.metadata or {}
    return {
        key.removeprefix(beginning): value for key, value in metadata.items() if key.startswith(beginning)
    }


def _current(attempts: Sequence[JobDetails]) -> JobDetails:
    """Return the attempt that runs, or else the last one: one that was refused must not hide another."""
    return max(
        attempts, key=lambda one: (_STATES[one.status.value] not in ENDED, one.start_time or float("inf"))
    )


def _status(details: JobDetails) -> JobStatus:
    kept = _kept(details)
    state = _STATES[details.status.value]
    if state == "failed" and details.driver_exit_code == RESUME_ME:
        state = "stopped"
    message = (details.message or "").strip()
    started = datetime.fromtimestamp((details.start_time or 0) / 1000, UTC)
    return JobStatus(
        name=kept["name"],
        kind=kept["kind"],
        state=state,
        out=kept["out"],
        num_steps=int(kept["num_steps"]),
        message=message.splitlines()[-1] if message else "",
        started_at=started.isoformat(timespec="seconds"),
    )
