"""Joining the searches of concurrent callers into few calls.

Exact search answers 58 queries/s one by one and 839 at a batch of 64, and a call between processes costs
1.2 ms whatever it carries. An idle batcher sends at once, so a lone caller waits for nobody; a busy one
gathers for a window that doubles while it pays and halves while it does not.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from retrieval.errors import IndexOverloaded, RetrievalRequestError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0
_SMOOTHING = 0.2


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    """One caller's items."""

    items: list[Item]
    """What is asked; never split over calls."""
    give_up_at: float
    """Monotonic time from which an answer is of no use."""
    answers: asyncio.Future[list[Answer]]
    """Where the caller waits."""


class MicroBatcher(Generic[Item, Answer]):
    """Runs the items of many callers in few calls; belongs to one event loop."""

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[list[Answer]]],
        *,
        max_batch: int,
        max_queued: int,
        max_in_flight: int = 2,
        window_s: tuple[float, float] = (0.001, 0.003),
    ) -> None:
        """Prepare.

        Args:
            run: Answers items in order.
            max_batch: Items a call carries when several callers share it; a larger list goes alone.
            max_queued: Items that may wait; more are refused.
            max_in_flight: Calls under way at once: one being computed, one on its way.
            window_s: Shortest and longest time a busy batcher gathers.
        """
        self._run = run
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._max_in_flight = max_in_flight
        self._min_window_s, self._max_window_s = window_s
        self._window_s = self._min_window_s
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._num_queued = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._item_s = 0.001
        """Time an item takes when busy, smoothed."""

    @property
    def num_queued(self) -> int:
        """Return the items that wait."""
        return self._num_queued

    async def submit(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Answer]:
        """Return the answers of the items, in order.

        Args:
            items: At least one.
            deadline_s: Seconds the items may wait for their turn; None for as long as it takes.

        Raises:
            IndexOverloaded: Too many items wait already, or these waited out their deadline.
        """
        if self._num_queued and self._num_queued + len(items) > self._max_queued:
            raise IndexOverloaded(
                f"{self._num_queued:,} searches wait already (max_queued_searches={self._max_queued:,}); "
                f"try again in {self._retry_s():.2f} s",
                self._retry_s(),
            )
        give_up_at = float("inf") if deadline_s is None else time.monotonic() + deadline_s
        answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(list(items), give_up_at, answers)
        self._queue.append(waiting)
        self._num_queued += len(waiting.items)
        self._schedule()
        return await answers

    async def aclose(self) -> None:
        """End the calls under way and refuse those that wait."""
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._in_flight):
            task.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        while self._queue:
            self._queue.popleft().answers.cancel()
        self._num_queued = 0

    def _schedule(self) -> None:
        if not self._queue or self._timer is not None or len(self._in_flight) >= self._max_in_flight:
            return  # The end of a call under way schedules the next.
        # Idle: after this turn of the loop, so that callers woken together still share a call.
        wait_s = self._window_s if self._in_flight else 0.0
        if self._num_queued >= self._max_batch:
            wait_s = 0.0
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._dispatch)

    def _dispatch(self) -> None:
        self._timer = None
        batch = self._next_batch()
        if not batch:
            return
        grows = len(batch) > 1
        self._window_s = min(
            max(self._window_s * (2.0 if grows else 0.5), self._min_window_s), self._max_window_s
        )
        task = asyncio.create_task(self._answer(batch))
        self._in_flight.add(task)
        task.add_done_callback(self._landed)
        self._schedule()

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._schedule()

    def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        batch: list[_Waiting[Item, Answer]] = []
        num_items, now = 0, time.monotonic()
        while self._queue and (not batch or num_items + len(self._queue[0].items) <= self._max_batch):
            waiting = self._queue.popleft()
            self._num_queued -= len(waiting.items)
            if waiting.answers.done():
                continue  # Its caller has left.
            if now > waiting.give_up_at:
                waiting.answers.set_exception(
                    IndexOverloaded(
                        "the search waited out its deadline in the queue; try again", self._retry_s()
                    )
                )
                continue
            batch.append(waiting)
            num_items += len(waiting.items)
        return batch

    async def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        started = time.monotonic()
        items = [item for waiting in batch for item in waiting.items]
        try:
            answers = await self._run(items)
        except RetrievalRequestError as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            # One caller's mistake is not the others': each is asked for alone.
            await asyncio.gather(*(self._answer([waiting]) for waiting in batch))
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answers.cancel()
            raise
        except Exception as error:  # The boundary of many callers' work: each of them raises it.
            _fail(batch, error)
        else:
            spent_s = (time.monotonic() - started) / len(items)
            self._item_s += _SMOOTHING * (spent_s - self._item_s)
            position = 0
            for waiting in batch:
                if not waiting.answers.done():
                    waiting.answers.set_result(answers[position : position + len(waiting.items)])
                position += len(waiting.items)

    def _retry_s(self) -> float:
        """Return when the queue of now will have been answered."""
        return min(max(self._num_queued * self._item_s, _MIN_RETRY_S), _MAX_RETRY_S)


def _fail(batch: Sequence[_Waiting[Item, Answer]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answers.done():
            waiting.answers.set_exception(error)
