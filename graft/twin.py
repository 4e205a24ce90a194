"""Sync and async twins of one async core, through a blocking portal.

The core's resources (sockets, SQLite connections, Ray futures) belong to one event loop in one thread.
`sync_twin` runs a core method there and waits, and Ctrl-C ends it there too; `async_twin` runs it there and
awaits from the caller's loop.
A stream is pumped by one task on the core's loop, because an async generator must not change tasks;
closing the twin cancels that task, which closes the core's stream down to the engine.
"""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
    """Return a blocking method that runs an async method of the core; Ctrl-C cancels it and waits."""

    @functools.wraps(method)
    def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> R:
        work: set[asyncio.Future[R]] = set()

        async def call() -> R:
            # In a task of its own, which is cancelled once: the portal's cancellation strikes again and
            # again, also while the core cleans up.
            task = asyncio.ensure_future(method(self._core, *args, **kwargs))
            work.add(task)
            try:
                await asyncio.wait(work)
                return task.result()
            finally:
                task.cancel()

        async def end() -> None:
            for task in work:
                task.cancel()
            if work:
                await asyncio.wait(work)

        try:
            return self._portal.call(call)
        except KeyboardInterrupt:
            self._portal.call(end)
            raise

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

    def __init__(self, source: Callable[[], AsyncIterator[R]], put: Callable[[R | _End], object]) -> None:
        self._source = source
        self._put = put
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read; call on the core's loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End reading and wait until the core's stream is closed; call on the core's loop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(self._source()) as items:  # pyright: ignore[reportArgumentType]
                async for item in items:
                    self._put(item)
        except Exception as raised:  # handed to the reader, who raises it
            error = raised
        self._put(_End(error))


def sync_stream(
    method: Callable[Concatenate[C, P], AsyncIterator[R]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Return a method that iterates a stream of the core from a plain thread."""

    @functools.wraps(method)
    def twin(self: Twinned, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items: queue.SimpleQueue[R | _End] = queue.SimpleQueue()
        pump = _Pump(functools.partial(method, self._core, *args, **kwargs), items.put)  # pyright: ignore
        self._portal.call(pump.start)
        try:
            while not isinstance(item := items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            self._portal.call(pump.stop)

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

        pump = _Pump(functools.partial(method, self._core, *args, **kwargs), put)  # pyright: ignore
        await asyncio.wrap_future(self._portal.start_task_soon(pump.start))
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            await asyncio.wrap_future(self._portal.start_task_soon(pump.stop))

    return twin
