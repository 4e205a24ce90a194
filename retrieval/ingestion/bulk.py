"""What an ingestion of many files takes, tells and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to ingest."""

    name: str
    """Its document's name."""
    path: Path
    """Where it is."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is no document: missing, empty, too large."""

    name: str
    """The name it would have had."""
    cause: str
    """Why, and what to do."""


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a bulk ingestion is."""

    files_done: int
    """Files that are ready, failed, queued, unchanged or refused."""
    num_files: int
    """All."""
    num_failed: int
    """Files whose document failed."""
    num_refused: int
    """Files that are no document."""
    num_chunks: int
    """Chunks made searchable."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of files."""

    document_ids: tuple[str, ...]
    """The documents, in no order; those queued are still to become ready."""
    refused: tuple[Refused, ...]
    """Files that are no document."""
