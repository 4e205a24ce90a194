"""Who encodes the versions of an index: the seam, and the pool that does it on the spot.

| pool | where | for |
|---|---|---|
| `InlineEncoderPool` | the trainer's thread, within `wait` | blocking refresh, tests |
| `ThreadEncoderPool` | threads of the trainer's process | one machine, encoders that release the GIL |
| `RayEncoderPool` | actors | a cluster |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from training.index.encoder_worker import EncoderWorker
from training.index.encoding import LoadEncoder, RowRange
from training.index.range_queue import EncodingJob


class EncoderPool(Protocol):
    """Encodes versions into `VersionRows`; writes the manifest of a version when all its blocks are there."""

    def begin(self, job: EncodingJob) -> None:
        """Start to encode the missing blocks of a version, without waiting; beginning again is harmless."""
        ...

    def num_pending(self, number: int) -> int:
        """Return how many blocks of a version lack; 0 when it is finished. Cheap enough for every step.

        Raises:
            ValueError: The version was not begun.
        """
        ...

    def wait(self, number: int, timeout_s: float) -> None:
        """Return when a version is finished.

        Raises:
            IndexNotReady: It is not within the timeout, or encoders keep failing; the message names what
                lacks and the last failure.
            NumericsError: Its weights give vectors that are not finite.
            ValueError: It was not begun, or its encoder returns wrong shapes.
        """
        ...

    @property
    def num_again(self) -> int:
        """Return how many blocks were encoded more than once."""
        ...

    def close(self) -> None:
        """Stop encoding; blocks on disk stay. Closing twice is harmless."""
        ...


class InlineEncoderPool:
    """Encodes within `wait`, in the thread that calls it."""

    def __init__(self, texts: Sequence[str], load_encoder: LoadEncoder) -> None:
        """Start without work.

        Args:
            texts: The corpus.
            load_encoder: Builds an encoder from snapshot weights.
        """
        self._worker = EncoderWorker("inline", load_encoder, lambda rows: texts[rows.first : rows.last])
        self._jobs: dict[int, EncodingJob] = {}
        self._lacking: dict[int, list[RowRange]] = {}

    def begin(self, job: EncodingJob) -> None:
        """Remember a version; see `EncoderPool`."""
        self._jobs[job.spec.number] = job
        self._lacking[job.spec.number] = job.rows.begin()

    def num_pending(self, number: int) -> int:
        """Return how many blocks lack; see `EncoderPool`."""
        begun(self._jobs, number)
        return len(self._lacking[number])

    def wait(self, number: int, timeout_s: float) -> None:
        """Encode what lacks, whatever the timeout; see `EncoderPool`."""
        job = begun(self._jobs, number)
        lacking = self._lacking[number]
        while lacking:
            self._worker.encode(job, lacking[0])
            lacking.pop(0)
        job.rows.finish()

    @property
    def num_again(self) -> int:
        """Return 0: nothing is lost where nothing runs beside."""
        return 0

    def close(self) -> None:
        """Forget the versions."""
        self._jobs.clear()
        self._lacking.clear()


def begun(jobs: dict[int, EncodingJob], number: int) -> EncodingJob:
    """Return the job of a version; raises ValueError when there is none."""
    if number not in jobs:
        raise ValueError(f"index version {number} was not begun in this pool; begun: {sorted(jobs)}")
    return jobs[number]
