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
    """A file that is not searchable: no document, being missing, empty or too large, or one that failed."""

    name: str
    """Its document's name, or the one it would have had."""
    cause: str
    """Why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkProgress:
    """How far an ingestion of files is."""

    num_files: int
    """All."""
    files_read: int = 0
    """Files whose bytes were read here and taken over, or that were refused."""
    files_done: int = 0
    """Files that are ready, failed, left to the shard's own queue, or refused."""
    num_ready: int = 0
    """Files that searches find, those that did not change included."""
    num_failed: int = 0
    """Files whose document failed."""
    num_refused: int = 0
    """Files that are no document."""
    num_chunks: int = 0
    """Chunks embedded and made searchable."""
    seconds: float = 0.0
    """Since the ingestion began."""
    failures: tuple[Refused, ...] = ()
    """Files that failed or were refused since the report before, each with its cause."""
    sent_because: str = ""
    """Why the files are added one by one; empty where they are few, or are read in place, many at a time."""

    @property
    def chunks_per_s(self) -> float:
        """Return chunks made searchable a second, since the beginning."""
        return self.num_chunks / self.seconds if self.seconds else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Return the seconds the rest will take at the pace so far; None before the first file is done."""
        if not self.files_done:
            return None
        return self.seconds * (self.num_files - self.files_done) / self.files_done


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of files."""

    document_ids: tuple[str, ...]
    """The documents, in no order; those queued are still to become ready."""
    refused: tuple[Refused, ...]
    """Files that are no document."""
