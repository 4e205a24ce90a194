"""How fast ingestion goes, and how far the documents under way are."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retrieval.truth.documents import Work

_REMEMBERED = 256
"""Groups of documents the pace is measured on."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The documents being embedded."""

    num_bytes: int
    """Their size."""
    chunks_done: int
    """Chunks embedded."""
    num_chunks: int
    """Chunks they make; 0 until the first are embedded."""
    chunks_of: Mapping[str, int]
    """Chunks of each by its id, in the order they are embedded."""

    def share_of(self, document_id: str) -> float | None:
        """Return the share of a document's chunks that are embedded; None where that is not known."""
        if document_id not in self.chunks_of or self.num_chunks not in (0, sum(self.chunks_of.values())):
            return None  # After a failure the documents are embedded one by one.
        before = 0
        for other, num_chunks in self.chunks_of.items():
            if other == document_id:
                break
            before += num_chunks
        return min(max(self.chunks_done - before, 0) / max(self.chunks_of[document_id], 1), 1.0)


@dataclass(frozen=True, slots=True)
class _Done:
    seconds: float
    num_bytes: int
    num_chunks: int


class Pace:
    """Counts what was ingested lately. Changed by the ingestion alone; anyone may read it."""

    def __init__(self) -> None:
        self._done: deque[_Done] = deque(maxlen=_REMEMBERED)
        self.under_way: UnderWay | None = None

    @contextlib.contextmanager
    def group(self, works: Sequence[Work], nums_chunks: Sequence[int]) -> Iterator[None]:
        """Count the block as the ingestion of documents.

        Args:
            works: The documents, in the order they are embedded.
            nums_chunks: How many chunks each has.
        """
        started = time.perf_counter()
        num_bytes = sum(len(work.data) for work in works)
        chunks_of = {work.document_id: count for work, count in zip(works, nums_chunks, strict=True)}
        self.under_way = UnderWay(num_bytes, 0, 0, chunks_of)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._done.append(_Done(seconds, num_bytes, self.under_way.num_chunks))
            self.under_way = None

    def embedding(self, chunks_done: int, num_chunks: int) -> None:
        """Note how far the documents under way are."""
        now = self.under_way
        if now is not None:
            self.under_way = replace(now, chunks_done=chunks_done, num_chunks=num_chunks)

    def share_of(self, document_id: str) -> float | None:
        """Return the share of a document's chunks that are embedded, while it is being embedded."""
        now = self.under_way
        return None if now is None else now.share_of(document_id)

    def chunks_per_s(self) -> float | None:
        """Return chunks made searchable a second lately; None before any was."""
        seconds = sum(done.seconds for done in self._done)
        return sum(done.num_chunks for done in self._done) / seconds if seconds else None

    def remaining_s(self, num_bytes: int) -> float | None:
        """Return the seconds so many bytes of queued documents will take; None while nothing is known."""
        if num_bytes == 0:
            return 0.0
        done_bytes = sum(done.num_bytes for done in self._done)
        if not done_bytes:
            return None
        return num_bytes * sum(done.seconds for done in self._done) / done_bytes
