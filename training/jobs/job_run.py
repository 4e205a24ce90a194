"""Running a job in this process: alone, as a rank of torchrun, or as the driver of Ray Train workers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from training.errors import JobError, TrainingError
from training.index.durable_files import write_durably
from training.jobs.job_config import JobConfig, parse_job
from training.jobs.job_data import JobSets, read_sets
from training.jobs.job_folder import CONFIG, JobFolder, JobRecord
from training.jobs.job_status import JobState
from training.jobs.job_store import LocalJobs
from training.jobs.kinds import KindRun, index_maker, run_kind
from training.jobs.memory_check import check_memory
from training.jobs.progress import Progress, following
from training.jobs.rank_end import KindOutcome
from training.jobs.report import MANIFEST, write_report
from training.jobs.stop_signals import stop_on_signals
from training.joint.parallel import torchrun_ranks
from training.joint.trainer import Watch
from training.toml_config import fingerprint

_PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "trl", "ray", "numpy")


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended."""

    state: JobState
    """`succeeded`, or `stopped` where it can be resumed."""
    steps: int
    """Optimizer steps done in all."""
    message: str
    """What a person should know."""


@dataclass(frozen=True, slots=True)
class JobText:
    """A configuration as it was given, so that a job can be started again from its folder."""

    text: str
    """The TOML file's content."""
    overrides: tuple[str, ...] = ()
    """`dotted.key=value`, later ones win."""

    def parsed(self, where: str) -> JobConfig:
        """Return the job with absolute paths; raises ConfigError."""
        return parse_job(self.text, self.overrides, where).resolved()


def run_job(given: JobText, jobs: LocalJobs, *, resume: bool = False, where: str = "job") -> JobOutcome:
    """Run a job to its end, or until it is told to stop.

    Args:
        given: The configuration.
        jobs: Where the job is listed.
        resume: Whether to go on with what the folder holds.
        where: What messages name the configuration by.

    Raises:
        JobError: The folder or the library is in use, or the folder holds a run that was not to be resumed.
        TrainingError: The job cannot be run, or failed; what was saved is untouched.
    """
    config = given.parsed(where)
    if os.environ.get("RANK", "0") != "0":  # The first rank of torchrun keeps the folder for all.
        outcome = _run_here(config, _sets(config), Watch())
        return _ended(outcome)
    folder = JobFolder(config.out)
    library = config.data.train.path if config.data.train.kind == "library" else config.data.library
    with folder.held(jobs.folder / "locks", library):
        _check_fresh(folder, resume)
        jobs.register(config.out)
        write_durably(config.out / CONFIG, lambda file: file.write(given.text.encode()))
        folder.begin(
            JobRecord(
                name=config.name,
                kind=config.kind,
                state="starting",
                num_steps=config.num_steps,
                cwd=str(Path.cwd()),
                overrides=given.overrides,
            )
        )
        try:
            outcome = _ended(_run(config, folder))
        except BaseException as error:
            cause = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            folder.end("failed", cause)
            raise
        folder.end(outcome.state, outcome.message)
        if config.kind != "mine":
            write_report(config.out)
    return outcome


def _check_fresh(folder: JobFolder, resume: bool) -> None:
    record = folder.record()
    if record is not None and not resume:
        raise JobError(
            f"'{folder.out}' holds job {record.name!r} already; pass --resume to go on with it, or choose "
            "another out"
        )
    if record is not None and record.state == "succeeded":
        raise JobError(f"job {record.name!r} in '{folder.out}' is complete: there is nothing to resume")
    if record is None and resume:
        raise JobError(f"'{folder.out}' holds no job to resume; leave --resume out to start one")


def _run(config: JobConfig, folder: JobFolder) -> KindOutcome:
    """Run a job whose folder this process holds."""
    sets = _sets(config)
    if not config.ranks.num_workers:
        check_memory(config, sets)
    _write_manifest(config, sets)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(config.name, config.num_steps))
        if config.ranks.num_workers:
            from training.jobs.ray_run import run_on_ray

            stack.enter_context(following(config.out, progress))
            return run_on_ray(config, sets)
        stack.enter_context(stop_on_signals(folder.stop_file))
        return _run_here(config, sets, Watch(progress.step, folder.stop_file.exists))


def _run_here(config: JobConfig, sets: JobSets, watch: Watch) -> KindOutcome:
    with torchrun_ranks() as ranks:
        return run_kind(config, KindRun(sets, ranks, watch))


def _sets(config: JobConfig) -> JobSets:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return read_sets(config.data, index_maker(config, device))


def _ended(outcome: KindOutcome) -> JobOutcome:
    if outcome.is_complete:
        return JobOutcome("succeeded", outcome.steps, outcome.message or f"{outcome.steps:,} steps done")
    message = f"saved after step {outcome.steps:,}; resume it to go on"
    return JobOutcome("stopped", outcome.steps, message)


def _write_manifest(config: JobConfig, sets: JobSets) -> None:
    facts = {
        "config": dataclasses.asdict(config),
        "config_fingerprint": fingerprint(config),
        "data": sets.facts(),
        "machine": {
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "devices": _devices(),
        },
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    content = json.dumps(facts, indent=1, default=str).encode()
    write_durably(config.out / MANIFEST, lambda file: file.write(content))


def _devices() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
