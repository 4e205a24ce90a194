"""How fast ingestion goes, and how far the documents under way are."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    def group(self, works: Sequence[Work]) -> Iterator[None]:
        """Count the block as the ingestion of documents."""
        started = time.perf_counter()
        num_bytes = sum(len(work.data) for work in works)
        self.under_way = UnderWay(num_bytes, 0, 0)
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
            self.under_way = UnderWay(now.num_bytes, chunks_done, num_chunks)

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
