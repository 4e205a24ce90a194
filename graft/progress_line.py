"""How far an ingestion is, on standard error: one live line on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from retrieval.ingestion.bulk import BulkProgress, Refused

PLAIN_S = 5.0
"""Seconds between two lines where nobody watches a terminal."""


class ProgressLine:
    """Shows reports given to `show`, from any thread, and keeps the failures they name."""

    def __init__(self, console: Console | None = None) -> None:
        """Prepare.

        Args:
            console: Where to show it; None for standard error.
        """
        from rich.console import Console

        self._console = console or Console(stderr=True, soft_wrap=True)
        self._status: Status | None = None
        self._shown_s = -PLAIN_S
        self._sent_because = ""
        self.failures: list[Refused] = []
        """Every file that failed or was refused, with its cause."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def show(self, progress: BulkProgress) -> None:
        """Show a report; one that says that all is done ends the live line."""
        self.failures += progress.failures
        if progress.sent_because and progress.sent_because != self._sent_because:
            self._sent_because = progress.sent_because
            self._console.print(f"sending the files one by one: {progress.sent_because}", markup=False)
        is_done = progress.files_done == progress.num_files
        if not self._console.is_terminal:
            now_s = time.monotonic()
            if is_done or now_s - self._shown_s >= PLAIN_S:
                self._shown_s = now_s
                self._console.print(described(progress), markup=False, highlight=False)
        elif is_done:
            self._stop()
        elif self._status is None:
            self._status = self._console.status(_escaped(progress))
            self._status.start()
        else:
            self._status.update(_escaped(progress))

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def described(progress: BulkProgress) -> str:
    """Return a report in one line: read, ready, failed, refused, chunks, pace and what is left."""
    parts = [f"{progress.num_ready:,} of {progress.num_files:,} files ready"]
    if progress.files_read > progress.files_done:
        parts.append(f"{progress.files_read:,} read")
    if progress.num_failed:
        parts.append(f"{progress.num_failed:,} failed")
    if progress.num_refused:
        parts.append(f"{progress.num_refused:,} refused")
    parts.append(f"{progress.num_chunks:,} chunks")
    if progress.num_chunks:
        parts.append(f"{progress.chunks_per_s:,.1f} chunks/s")
    if progress.remaining_s:
        parts.append(f"about {_duration(progress.remaining_s)} left")
    return ", ".join(parts)


def _escaped(progress: BulkProgress) -> str:
    from rich.markup import escape

    return escape(described(progress))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
