"""Errors of the training package.

TrainingError
├── ConfigError          the caller's fault: a configuration that cannot be run
├── DataMissingError     the caller's fault: the data folder lacks a file
└── CheckpointError      a checkpoint that does not fit the run that wants to resume from it
"""

from __future__ import annotations

from pathlib import Path


class TrainingError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(TrainingError):
    """A configuration that cannot be run; the message names the field, the limit and the remedy."""


class DataMissingError(TrainingError):
    """A data file that a reader needs is not there."""

    def __init__(self, path: Path) -> None:
        """Name the missing path."""
        super().__init__(f"{path} is missing: pass the folder that holds it with --data")
        self.path = path


class CheckpointError(TrainingError):
    """A checkpoint written by a different configuration, or one that cannot be read."""
