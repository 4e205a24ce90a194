"""Errors of the training package.

TrainingError
├── ConfigError          the caller's fault: a configuration that cannot be run
├── DataError            the caller's fault: data that is malformed, empty or contradicts itself
│   ├── DataMissingError     a file is not there
│   └── LeakageError         a question or passage of the evaluation is in the training data
├── CheckpointError      a checkpoint that is damaged or does not fit the run that wants to resume from it
├── IndexNotReady        an index version did not come in time, or is damaged
├── StalenessViolated    a search would have used an index older than the bound: a bug, never expected
├── NumericsError        a loss or gradient that is not finite
├── OutOfResources       memory, disk or the cluster cannot hold what was asked
└── JobError             a job that cannot be submitted, found or resumed
"""

from __future__ import annotations

from pathlib import Path


class TrainingError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(TrainingError):
    """A configuration that cannot be run; the message names the field, the limit and the remedy."""


class DataError(TrainingError):
    """Training data that is malformed, empty or contradicts itself; the message names file and line."""


class DataMissingError(DataError):
    """A data file that a reader needs is not there."""

    def __init__(self, path: Path) -> None:
        """Name the missing path."""
        super().__init__(f"{path} is missing: pass the folder that holds it with --data")
        self.path = path


class LeakageError(DataError):
    """A question or passage of the evaluation is in the training data."""


class CheckpointError(TrainingError):
    """A checkpoint written by a different configuration, or one that cannot be read."""


class IndexNotReady(TrainingError):
    """An index version did not come in time, or its files are damaged."""


class StalenessViolated(TrainingError):
    """A search would have used an index older than the bound of the run."""


class NumericsError(TrainingError):
    """A loss or a gradient that is NaN or infinite; the run stops before weights are touched."""


class OutOfResources(TrainingError):
    """Memory, disk or the cluster cannot hold what was asked; the message says how much is missing."""


class JobError(TrainingError):
    """A training job that cannot be submitted, found, stopped or resumed."""
