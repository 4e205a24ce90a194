"""Blocks that wait for an encoder: who holds which, and what an idle encoder takes from a slow one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.index.encoding import RowRange
from training.index.version_rows import VersionRows, VersionSpec

_STEAL_AFTER = 3.0
"""A block held this many times longer than blocks take on average is given to a second encoder."""
_STEAL_AFTER_S = 0.2
"""The least age at which it is, in seconds: timers of short blocks say little."""
_MAX_HOLDERS = 2


@dataclass(frozen=True, slots=True)
class EncodingJob:
    """One version to encode."""

    spec: VersionSpec
    """What its blocks must be."""
    versions_folder: Path
    """Where its rows go; reachable from every encoder."""
    weights_folder: Path
    """Its snapshot weights; reachable from every encoder."""

    @property
    def rows(self) -> VersionRows:
        """Return its rows on disk."""
        return VersionRows(self.versions_folder, self.spec)


@dataclass(frozen=True, slots=True)
class Lease:
    """A block that one encoder works on."""

    job: EncodingJob
    """The version."""
    rows: RowRange
    """The block."""


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue at one moment."""

    wanted: list[str]
    """Idle encoders for which there is a block."""
    num_lacking: dict[int, int]
    """Blocks that are not done, by version; without versions that the queue does not know."""
    num_again: int
    """Blocks that were handed out more than once."""


@dataclass(slots=True)
class _Version:
    job: EncodingJob
    waiting: list[RowRange]
    """Blocks nobody holds, the next one last."""
    holders: dict[RowRange, dict[str, float]] = field(default_factory=dict)
    """Blocks that are worked on: by whom, and since when."""
    num_done: int = 0
    done_s: float = 0.0
    """Seconds that finished blocks took together."""


class RangeQueue:
    """Hands out blocks, the oldest version first; safe for threads. It need not last: the disk knows more."""

    def __init__(self) -> None:
        """Start without work."""
        self._versions: dict[int, _Version] = {}
        self._lock = threading.Lock()
        self._num_again = 0

    def begin(self, job: EncodingJob, ranges: Sequence[RowRange]) -> None:
        """Queue blocks of a version; what was known of it is forgotten.

        Args:
            job: The version.
            ranges: Blocks that are missing.
        """
        with self._lock:
            self._versions[job.spec.number] = _Version(job, sorted(ranges, reverse=True))

    def end(self, number: int) -> None:
        """Forget a version; encoders that hold a block of it finish it for nothing."""
        with self._lock:
            self._versions.pop(number, None)

    def take(self, encoder: str) -> Lease | None:
        """Return a block for an idle encoder, or None when there is nothing for it to do now."""
        with self._lock:
            now_s = time.monotonic()
            for number in sorted(self._versions):
                version = self._versions[number]
                rows = version.waiting.pop() if version.waiting else self._overdue(version, encoder, now_s)
                if rows is not None:
                    version.holders.setdefault(rows, {})[encoder] = now_s
                    return Lease(version.job, rows)
            return None

    def done(self, encoder: str, lease: Lease) -> None:
        """Record that a block is on disk; the second of two holders changes nothing."""
        with self._lock:
            version = self._versions.get(lease.job.spec.number)
            # A version may have begun anew with other weights while the encoder worked.
            if version is None or version.job != lease.job:
                return
            holders = version.holders.pop(lease.rows, None)
            if holders is None:
                # Released because its encoder seemed dead, and finished all the same.
                if lease.rows in version.waiting:
                    version.waiting.remove(lease.rows)
                return
            self._num_again += len(holders) - 1
            version.num_done += 1
            version.done_s += time.monotonic() - holders.get(encoder, min(holders.values()))

    def release(self, encoder: str) -> None:
        """Give back what an encoder held when it failed or died."""
        with self._lock:
            for version in self._versions.values():
                for rows, holders in list(version.holders.items()):
                    if holders.pop(encoder, None) is None:
                        continue
                    self._num_again += 1
                    if not holders:
                        del version.holders[rows]
                        version.waiting.append(rows)

    def look(self, encoders: Sequence[str], numbers: Sequence[int]) -> QueueLook:
        """Return what a supervisor asks all the time, in one call.

        Args:
            encoders: Idle ones.
            numbers: Versions that are not finished.
        """
        with self._lock:
            now_s = time.monotonic()
            return QueueLook(
                wanted=[encoder for encoder in encoders if self._has_work(encoder, now_s)],
                num_lacking={
                    number: len(version.waiting) + len(version.holders)
                    for number, version in self._versions.items()
                    if number in numbers
                },
                num_again=self._num_again,
            )

    def _has_work(self, encoder: str, now_s: float) -> bool:
        return any(
            version.waiting or self._overdue(version, encoder, now_s) is not None
            for version in self._versions.values()
        )

    @staticmethod
    def _overdue(version: _Version, encoder: str, now_s: float) -> RowRange | None:
        if not version.num_done:
            return None
        patience_s = max(_STEAL_AFTER_S, _STEAL_AFTER * version.done_s / version.num_done)
        overdue = [
            (min(holders.values()), rows)
            for rows, holders in version.holders.items()
            if encoder not in holders
            and len(holders) < _MAX_HOLDERS
            and now_s - min(holders.values()) > patience_s
        ]
        return min(overdue)[1] if overdue else None
