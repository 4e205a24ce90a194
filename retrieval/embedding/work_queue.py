"""Threads that compute embeddings, a query always before a passage."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, TypeVar

_T = TypeVar("_T")


class Priority(IntEnum):
    """Whose turn it is; the smaller goes first."""

    QUERY = 0
    PASSAGE = 1


class WorkQueue:
    """Runs functions in `num_threads` threads of its own, by priority, then in order of arrival.

    What runs is not interrupted: a query waits for one passage batch at most.
    """

    def __init__(self, num_threads: int) -> None:
        """Start the threads."""
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._order = itertools.count()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"embedder-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, priority: Priority, function: Callable[..., _T], *args: Any) -> Future[_T]:
        """Queue a call and return its future; cancelling it before its turn takes it out of the queue.

        Raises:
            RuntimeError: The queue is closed.
        """
        future: Future[_T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the embedder is closed; open another")
            entry = (int(priority), next(self._order), future, lambda: function(*args))
            heapq.heappush(self._waiting, entry)
            self._changed.notify()
        return future

    async def run(self, priority: Priority, function: Callable[..., _T], *args: Any) -> _T:
        """Return what `function(*args)` returns, computed in one of the threads."""
        return await asyncio.wrap_future(self.submit(priority, function, *args))

    def close(self) -> None:
        """Cancel what waits, let what runs end, and stop the threads."""
        with self._changed:
            self._closed = True
            cancelled = [future for _, _, future, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for future in cancelled:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                _, _, future, function = heapq.heappop(self._waiting)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, function  # A thread that waits must not keep the last batch in memory.
