"""What is known of a job from outside, wherever it runs, and the front that all places share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

JobState = Literal["starting", "running", "stopped", "succeeded", "failed", "died"]
"""`stopped` and `died` can be resumed from the newest checkpoint; `died` ended without saying so."""
ENDED: tuple[JobState, ...] = ("stopped", "succeeded", "failed", "died")
"""States that do not change by themselves."""

RESUME_ME = 75
"""Exit status of a job that was told to stop and saved: EX_TEMPFAIL, for schedulers that start jobs again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as lists show it."""

    name: str
    """What commands call it."""
    kind: str
    """Kind of its configuration."""
    state: JobState
    """Where it stands."""
    out: str
    """Its folder, on the machine that trains."""
    step: int | None = None
    """Optimizer steps done; None where that is only known over there."""
    num_steps: int = 0
    """Steps of the whole job; 0 where it takes none."""
    message: str = ""
    """Why it ended or what it waits for."""
    started_at: str = ""
    """UTC, ISO 8601."""


class Jobs(Protocol):
    """The jobs of one place: this machine, or a cluster."""

    def submit(self, config: Path, overrides: Sequence[str] = ()) -> JobStatus:
        """Start a job and return at once.

        Raises:
            ConfigError: The configuration cannot be run.
            JobError: Its folder is in use or holds a run, or nobody takes jobs here.
        """
        ...

    def list(self) -> list[JobStatus]:
        """Return all jobs, newest first."""
        ...

    def status(self, name: str) -> JobStatus:
        """Return a job; raises JobError where there is none of the name."""
        ...

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Yield what a job printed, in pieces; with `follow` until it ends."""
        ...

    def stop(self, name: str) -> JobStatus:
        """Ask a job to save a checkpoint and end; returns before it has. Harmless when it has ended."""
        ...

    def resume(self, name: str) -> JobStatus:
        """Start a job again from its newest checkpoint.

        Raises:
            JobError: It is still running, or it is complete.
        """
        ...
