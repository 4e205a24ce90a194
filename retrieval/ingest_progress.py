"""How fast ingestion goes, and how far the document under way is."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from retrieval.documents import Work

_REMEMBERED = 256
"""Documents the pace is measured on."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The document being ingested."""

    document_id: str
    """The document."""
    num_bytes: int
    """Its size."""
    chunks_done: int
    """Chunks embedded."""
    num_chunks: int
    """Chunks it makes; 0 until it is cut."""


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
    def document(self, work: Work) -> Iterator[None]:
        """Count the block as one document's ingestion."""
        started = time.perf_counter()
        self.under_way = UnderWay(work.document_id, len(work.data), 0, 0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._done.append(_Done(seconds, len(work.data), self.under_way.num_chunks))
            self.under_way = None

    def embedding(self, chunks_done: int, num_chunks: int) -> None:
        """Note how far the document under way is."""
        now = self.under_way
        if now is not None:
            self.under_way = UnderWay(now.document_id, now.num_bytes, chunks_done, num_chunks)

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
