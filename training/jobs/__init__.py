"""Training as jobs: one TOML file each, on this machine or on a Ray cluster.

Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.jobs.client import ClusterJobs
    from training.jobs.job_config import JobConfig, load_job, parse_job
    from training.jobs.job_run import JobOutcome, JobText, run_job
    from training.jobs.job_status import Jobs, JobStatus
    from training.jobs.job_store import LocalJobs
    from training.jobs.progress import Progress
    from training.jobs.report import write_report

_HOMES = {
    "ClusterJobs": "client",
    "JobConfig": "job_config",
    "JobOutcome": "job_run",
    "JobStatus": "job_status",
    "JobText": "job_run",
    "Jobs": "job_status",
    "LocalJobs": "job_store",
    "Progress": "progress",
    "load_job": "job_config",
    "parse_job": "job_config",
    "run_job": "job_run",
    "write_report": "report",
}
"""File of each public name."""

__all__ = [
    "ClusterJobs",
    "JobConfig",
    "JobOutcome",
    "JobStatus",
    "JobText",
    "Jobs",
    "LocalJobs",
    "Progress",
    "load_job",
    "parse_job",
    "run_job",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training.jobs' has no attribute {name!r}")
    return getattr(import_module(f"training.jobs.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
