"""Sync and async twins of one async core, through a blocking portal.

The core's resources (sockets, SQLite connections, Ray futures) belong to one event loop in one thread.
`sync_twin` runs a core method there and waits; `async_twin` runs it there and awaits from the caller's loop.
A stream is pumped by one task on the core's loop, because an async generator must not change tasks;
closing the twin cancels that task, which closes the core's stream down to the engine.
"""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from anyio.from_thread import BlockingPortal

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


class Twinned(Protocol):
    """What a class with generated twins holds."""

    _core: Any
    """The async object whose methods are twinned."""
    _portal: BlockingPortal
    """The way onto the core's loop."""


def sync_twin(method: Callable[Concatenate[C, P], Awaitable[R]]) -> Callable[Concatenate[Any, P], R]:
    """Return a blocking method that runs an async method of the core."""

    @functools.wraps(method)
    def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.call(functools.partial(method, self._core, *args, **kwargs))  # pyright: ignore

    return twin


def async_twin(
    method: Callable[Concatenate[C, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], Awaitable[R]]:
    """Return an async method that may be awaited on any event loop."""

    @functools.wraps(method)
    async def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call = functools.partial(method, self._core, *args, **kwargs)
        return await asyncio.wrap_future(self._portal.start_task_soon(call))  # pyright: ignore

    return twin


class _End:
    """The end of a pumped stream, with the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Pump(Generic[R]):
    """Runs an async iterator in one task of the core's loop and hands its items over."""

    def __init__(
        self,
        portal: BlockingPortal,
        source: Callable[[], AsyncIterator[R]],
        put: Callable[[R | _End], object],
    ) -> None:
        self._put = put
        self._task: Future[None] = portal.start_task_soon(self._run, source)

    async def _run(self, source: Callable[[], AsyncIterator[R]]) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(source()) as items:  # pyright: ignore[reportArgumentType]
                async for item in items:
                    self._put(item)
        except Exception as raised:  # handed to the reader, who raises it
            error = raised
        self._put(_End(error))

    def close(self) -> None:
        """Cancel the task and wait until the core's stream is closed."""
        self._task.cancel()
        try:
            self._task.result()
        except CancelledError:
            return

    async def aclose(self) -> None:
        """Cancel the task and wait, without blocking the caller's loop, until the core's stream is closed."""
        self._task.cancel()
        await asyncio.wait([asyncio.wrap_future(self._task)])


def sync_stream(
    method: Callable[Concatenate[C, P], AsyncIterator[R]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Return a method that iterates a stream of the core from a plain thread."""

    @functools.wraps(method)
    def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items: queue.SimpleQueue[R | _End] = queue.SimpleQueue()
        pump = _Pump(self._portal, functools.partial(method, self._core, *args, **kwargs), items.put)  # pyright: ignore
        try:
            while not isinstance(item := items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            pump.close()

    return twin


def async_stream(
    method: Callable[Concatenate[C, P], AsyncIterator[R]],
) -> Callable[Concatenate[Any, P], AsyncIterator[R]]:
    """Return a method that iterates a stream of the core from any event loop."""

    @functools.wraps(method)
    async def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        items: asyncio.Queue[R | _End] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: R | _End) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        pump = _Pump(self._portal, functools.partial(method, self._core, *args, **kwargs), put)  # pyright: ignore
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            await pump.aclose()

    return twin
