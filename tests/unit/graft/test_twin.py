from __future__ import annotations

import asyncio
import signal
import threading

import pytest
from anyio.from_thread import start_blocking_portal

from graft.twin import async_stream, async_twin, sync_stream, sync_twin


class Core:
    def __init__(self):
        self.closed = threading.Event()
        self.begun = threading.Event()

    async def forever(self) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)  # Ends here if it is cancelled once more.
            self.closed.set()

    async def add(self, left: int, *, right: int = 1) -> int:
        await asyncio.sleep(0)
        if right == 0:
            raise ValueError("right is 0")
        return left + right

    async def count(self, n: int):
        task = asyncio.current_task()
        try:
            for i in range(n):
                await asyncio.sleep(0.001)
                assert asyncio.current_task() is task
                yield i
            if n == 3:
                raise ValueError("three")
        finally:
            self.closed.set()


class Twin:
    def __init__(self, core, portal):
        self._core, self._portal = core, portal

    add = sync_twin(Core.add)
    forever = sync_twin(Core.forever)
    aadd = async_twin(Core.add)
    count = sync_stream(Core.count)
    acount = async_stream(Core.count)


@pytest.fixture
def twin():
    with start_blocking_portal() as portal:
        yield Twin(Core(), portal)
        portal.start_task_soon(portal.stop, True)  # Cancels what a failed test left waiting.


def test_sync_call_returns_and_raises(twin):
    assert twin.add(2, right=3) == 5
    with pytest.raises(ValueError, match="right is 0"):
        twin.add(2, right=0)


def test_ctrl_c_ends_the_call_in_the_core_before_it_is_raised(twin):
    def press() -> None:
        twin._core.begun.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        twin.forever()
    assert twin._core.closed.is_set()
    pressing.join()


async def test_async_call_returns_and_raises_on_another_loop(twin):
    assert await twin.aadd(2) == 3
    with pytest.raises(ValueError, match="right is 0"):
        await twin.aadd(2, right=0)


def test_sync_stream_yields_all_then_raises_the_cores_error(twin):
    assert list(twin.count(5)) == [0, 1, 2, 3, 4]
    seen = []
    with pytest.raises(ValueError, match="three"):
        seen.extend(twin.count(3))


async def test_async_stream_yields_all_on_another_loop(twin):
    assert [i async for i in twin.acount(4)] == [0, 1, 2, 3]


def test_closing_a_sync_stream_closes_the_cores(twin):
    stream = twin.count(10_000)
    assert next(stream) == 0
    stream.close()
    assert twin._core.closed.is_set()


async def test_closing_an_async_stream_closes_the_cores(twin):
    stream = twin.acount(10_000)
    assert await anext(stream) == 0
    await stream.aclose()
    assert twin._core.closed.is_set()


async def test_cancelling_the_reader_closes_the_cores(twin):
    async def read():
        async for _ in twin.acount(10_000):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(twin._core.closed.wait, 5)
