"""A thread that works through calls and never keeps a process alive."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Value = TypeVar("Value")


class DaemonThread:
    """Runs calls one after another; ends with this object, or with the process.

    `ThreadPoolExecutor` joins its threads when the interpreter ends, so an encoder that hangs would keep a
    finished run from exiting.
    """

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True).start()
        weakref.finalize(self, self._calls.put, None)

    def submit(self, call: Callable[[], Value]) -> Future[Value]:
        """Queue a call; its result, or what it raises, goes into the future."""
        future: Future[Value] = Future()
        self._calls.put((future, call))
        return future


def _work(calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (item := calls.get()) is not None:
        future, call = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            value = call()
        except BaseException as error:
            # Whoever reads the future gets it, as with an executor.
            future.set_exception(error)
        else:
            future.set_result(value)
        # A thread that waits for its next call must not keep the last one alive.
        del item, future, call
