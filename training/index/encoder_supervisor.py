"""Encoders that work beside the trainer, watched: those that fail give their blocks back and start again.

A pool is a queue of blocks, slots that each run one encoder, and one thread that keeps slots busy. Threads
and Ray actors differ in their slots and in where the queue lives, and in nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

from training.errors import IndexNotReady, NumericsError
from training.index.daemon_thread import DaemonThread
from training.index.encoder_pool import begun
from training.index.encoder_worker import BlockSource, EncoderWorker
from training.index.encoding import LoadEncoder, RowRange
from training.index.range_queue import EncodingJob, QueueLook, RangeQueue

_POLL_S = 0.05
_IDLE_POLL_S = 1.0
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 5.0
_FAILURES_PER_SLOT = 5
"""Failures in a row, over all slots and without one finished block, after which a version is given up."""
_CLOSE_S = 10.0


class BlockQueue(BlockSource, Protocol):
    """A `RangeQueue`, here or behind an actor that may come back empty."""

    def begin(self, job: EncodingJob, ranges: Sequence[RowRange]) -> None:
        """Queue blocks of a version."""
        ...

    def end(self, number: int) -> None:
        """Forget a version."""
        ...

    def release(self, encoder: str) -> None:
        """Give back what an encoder held."""
        ...

    def look(self, encoders: Sequence[str], numbers: Sequence[int]) -> QueueLook:
        """Return for which idle encoders there is work, and what versions lack."""
        ...


class EncoderSlot(Protocol):
    """Room for one encoder."""

    @property
    def name(self) -> str:
        """Return what messages and leases call it."""
        ...

    def start(self) -> Future[int]:
        """Let it work until the queue has nothing for it; the future holds how many blocks it did."""
        ...

    def replace(self, error: BaseException) -> None:
        """Make a new encoder, where the error says that the old one cannot work any more."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(slots=True)
class _Seat:
    slot: EncoderSlot
    running: Future[int] | None = None
    backoff_s: float = 0.0
    idle_until_s: float = 0.0


class SupervisedEncoderPool:
    """An `EncoderPool` over slots; ends its thread and its slots on `close`."""

    def __init__(self, queue: BlockQueue, slots: Sequence[EncoderSlot]) -> None:
        """Start the supervising thread.

        Args:
            queue: Empty.
            slots: At least one; the pool owns them.
        """
        if not slots:
            raise ValueError("an encoder pool needs at least one encoder")
        self._queue = queue
        self._seats = [_Seat(slot) for slot in slots]
        self._jobs: dict[int, EncodingJob] = {}
        self._open: dict[int, int] = {}
        """Blocks that lack, by version that is not finished."""
        self._errors: dict[int, BaseException] = {}
        """Why a version was given up."""
        self._last_failure = ""
        self._failures_in_row = 0
        self._num_again = 0
        self._closing = False
        self._changed = threading.Condition()
        self._supervision = DaemonThread("index-encoders").submit(self._supervise)
        self._supervision.add_done_callback(lambda _: self._wake())

    def begin(self, job: EncodingJob) -> None:
        """Queue the missing blocks of a version; see `EncoderPool`."""
        missing = job.rows.begin()
        with self._changed:
            number = job.spec.number
            self._errors.pop(number, None)
            self._failures_in_row = 0
            self._jobs[number] = job
            self._queue.begin(job, missing)
            # At least one until the manifest is written.
            self._open[number] = max(len(missing), 1)
            self._changed.notify_all()

    def num_pending(self, number: int) -> int:
        """Return how many blocks lacked when the supervisor last looked; see `EncoderPool`."""
        begun(self._jobs, number)
        return self._open.get(number, 0)

    def wait(self, number: int, timeout_s: float) -> None:
        """Wait for a version; see `EncoderPool`."""
        begun(self._jobs, number)
        with self._changed:
            self._changed.wait_for(
                lambda: number not in self._open or number in self._errors or self._supervision.done(),
                timeout_s,
            )
            if number not in self._open:
                return
            error = self._errors.get(number)
        if error is None and self._supervision.done():
            # Raises what ended the supervising thread, if that was an error.
            self._supervision.result()
            raise IndexNotReady(f"index version {number} is not finished and its encoder pool was closed")
        if isinstance(error, (NumericsError, ValueError)):
            raise error
        # The disk is asked, not the queue: it may be why nothing came.
        lacking = self._jobs[number].rows.missing()
        shown = f"{len(lacking)} blocks" + (f", the first is rows {lacking[0]}" if lacking else "")
        if error is not None:
            raise IndexNotReady(
                f"index version {number} lacks {shown}, and every encoder keeps failing: {self._last_failure}"
            ) from error
        raise IndexNotReady(
            f"index version {number} lacks {shown} after {timeout_s:g} s "
            f"({self._last_failure or 'no encoder failed'}): add encoders, lengthen delay_steps or raise the "
            "timeout"
        )

    @property
    def num_again(self) -> int:
        """Return how many blocks were handed out more than once, as the supervisor last saw."""
        return self._num_again

    def close(self) -> None:
        """Stop the thread and the encoders; an encoder that hangs is left to the end of the process."""
        self._closing = True
        self._wake()
        wait([self._supervision], timeout=_CLOSE_S)
        for seat in self._seats:
            seat.slot.close()

    def _supervise(self) -> None:
        while not self._closing:
            for seat in self._seats:
                if seat.running is not None and seat.running.done():
                    self._settle(seat, seat.running)
            numbers = [number for number in list(self._open) if number not in self._errors]
            if numbers:
                now_s = time.monotonic()
                idle = {s.slot.name: s for s in self._seats if s.running is None and now_s >= s.idle_until_s}
                look = self._queue.look(list(idle), numbers)
                self._num_again = look.num_again
                for number in numbers:
                    self._take_stock(number, look.num_lacking.get(number))
                for name in look.wanted:
                    idle[name].running = idle[name].slot.start()
            self._sleep()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _settle(self, seat: _Seat, running: Future[int]) -> None:
        """Take note of how an encoder ended."""
        seat.running = None
        error = running.exception()
        if error is None:
            seat.backoff_s = 0.0
            return
        self._queue.release(seat.slot.name)
        seat.backoff_s = min(max(2 * seat.backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
        seat.idle_until_s = time.monotonic() + seat.backoff_s
        seat.slot.replace(error)
        with self._changed:
            self._last_failure = f"{seat.slot.name}: {type(error).__name__}: {error}"
            self._failures_in_row += 1
            hopeless = self._failures_in_row >= _FAILURES_PER_SLOT * len(self._seats)
            # The same weights give the same vectors: trying again cannot help.
            if hopeless or isinstance(error, (NumericsError, ValueError)):
                self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        for number in self._open:
            self._errors[number] = error
            self._queue.end(number)
        self._changed.notify_all()

    def _take_stock(self, number: int, num_lacking: int | None) -> None:
        """Note what a version lacks, and finish it when that is nothing."""
        job = self._jobs[number]
        if num_lacking is None:
            # The queue came back empty from a crash; the disk knows what is done.
            missing = job.rows.missing()
            num_lacking = len(missing)
            self._queue.begin(job, missing)
        if num_lacking == 0:
            job.rows.finish()
        with self._changed:
            if self._jobs[number] is not job:
                return
            if num_lacking < self._open[number]:
                self._failures_in_row = 0
            self._open[number] = num_lacking
            if num_lacking == 0:
                del self._open[number]
                self._queue.end(number)
                self._changed.notify_all()

    def _sleep(self) -> None:
        """Sleep until an encoder ends, work arrives or it is time to look again."""
        if running := [seat.running for seat in self._seats if seat.running is not None]:
            wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            return
        with self._changed:
            if not self._closing:
                self._changed.wait(_POLL_S if self._open else _IDLE_POLL_S)


class ThreadSlot:
    """An encoder in a thread of this process."""

    def __init__(self, worker: EncoderWorker, name: str, source: BlockSource) -> None:
        """Start the thread, without work.

        Args:
            worker: The encoder.
            name: What leases call it.
            source: The queue it pulls from.
        """
        self._worker = worker
        self._name = name
        self._source = source
        self._thread = DaemonThread(name)

    @property
    def name(self) -> str:
        """Return the name of the slot."""
        return self._name

    def start(self) -> Future[int]:
        """Let the thread pull blocks."""
        return self._thread.submit(lambda: self._worker.run(self._source))

    def replace(self, error: BaseException) -> None:
        """Keep the thread: a failure in it does not end it."""

    def close(self) -> None:
        """Do nothing: the thread ends with the slot, after the block it is at."""


class ThreadEncoderPool(SupervisedEncoderPool):
    """Encoders in threads of the trainer's process."""

    def __init__(self, texts: Sequence[str], load_encoder: LoadEncoder, num_encoders: int = 1) -> None:
        """Start the threads.

        Args:
            texts: The corpus.
            load_encoder: Builds an encoder from snapshot weights, once a version and thread.
            num_encoders: Threads.
        """
        queue = RangeQueue()
        slots: list[EncoderSlot] = []
        for index in range(num_encoders):
            name = f"encoder-{index}"
            worker = EncoderWorker(name, load_encoder, lambda rows: texts[rows.first : rows.last])
            slots.append(ThreadSlot(worker, name, queue))
        super().__init__(queue, slots)
