from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from httpx import ASGITransport, AsyncClient

from graft.access import Access
from graft.backend import Part, PlatformStatus
from graft.config import ServerConfig
from graft.drain import Drain
from graft.errors import ShuttingDown
from graft.sdk import AsyncGraft
from graft.serve import EndSignals
from graft.server import create_app
from graft.wire import error_from_json

LONG_S = 30.0


async def test_a_drain_ends_with_the_last_work_under_way():
    drain = Drain()
    with drain:
        with drain:
            draining = asyncio.create_task(drain.run(LONG_S, asyncio.Event()))
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        assert not draining.done()
    async with asyncio.timeout(5):
        assert await draining == 0


async def test_a_drain_of_nothing_waits_for_nothing():
    async with asyncio.timeout(5):
        assert await Drain().run(LONG_S, asyncio.Event()) == 0


@pytest.mark.parametrize(("limit_s", "at_once"), [(0.01, False), (0.0, False), (LONG_S, True)])
async def test_a_drain_ends_at_its_bound_or_when_told_and_says_what_is_left(limit_s, at_once):
    drain, told = Drain(), asyncio.Event()
    with drain:
        draining = asyncio.create_task(drain.run(limit_s, told))
        await asyncio.sleep(0)
        if at_once:
            told.set()
        async with asyncio.timeout(5):
            assert await draining == 1


async def test_work_that_comes_during_a_drain_is_refused_and_told_when_to_come_back():
    drain = Drain()
    with drain:
        await drain.run(0.0, asyncio.Event())
        with pytest.raises(ShuttingDown, match="shutting down") as refused, drain:
            pytest.fail("it was admitted")
        assert drain.num_under_way == 1
    assert refused.value.retry_after_s > 0


@pytest.mark.parametrize(
    ("signals", "at_once"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGINT], True),
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGTERM, signal.SIGINT], True),
    ],
)
async def test_a_first_sigterm_drains_and_every_other_signal_ends_at_once(signals, at_once):
    end = EndSignals()
    for number in signals:
        end.on_signal(number)
    assert end.asked.is_set()
    assert end.at_once.is_set() == at_once


class SlowGraft:
    """A platform whose search is answered when it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def libraries(self) -> list[Any]:
        self.asked.set()
        await self.go.wait()
        return []

    async def status(self) -> PlatformStatus:
        return PlatformStatus("0", None, (Part("generator", "ready", ""),), (), 1)

    async def metrics(self) -> str:
        return "graft_part_up 1\n"


async def test_the_server_refuses_new_work_and_ends_what_it_has():
    graft, drain = SlowGraft(), Drain()
    app = create_app(cast(AsyncGraft, graft), Access(), ServerConfig(), drain)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/healthz")).json() == {"status": "ok", "parts": {"generator": "ready"}}
        under_way = asyncio.create_task(client.get("/v1/libraries"))
        await graft.asked.wait()
        draining = asyncio.create_task(drain.run(LONG_S, asyncio.Event()))
        await asyncio.sleep(0)

        refused = await client.post("/v1/ask", json={"question": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        error = error_from_json(refused.json(), 503)
        assert isinstance(error, ShuttingDown)
        assert "shutting down" in str(error)
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert (await client.get("/metrics")).status_code == 200
        assert not draining.done()

        graft.go.set()
        assert (await under_way).json() == {"libraries": []}
        assert await draining == 0


async def test_a_caller_without_permission_is_not_told_of_the_drain():
    drain = Drain()
    await drain.run(0.0, asyncio.Event())
    app = create_app(cast(AsyncGraft, SimpleNamespace()), Access("secret"), ServerConfig(), drain)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/v1/libraries")).status_code == 401
