"""The real engine behind its actor when things go wrong; after each of them what is held is counted there."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from held import Held, held_in_actor, in_actor
from tiny_adapter import write_adapter

from serving import (
    ActorGenerator,
    GeneratedChunk,
    GenerateRequest,
    GeneratorUnavailable,
    Overloaded,
    Sampling,
    ServingConfig,
    Turn,
    UnknownAdapter,
    chat_prompt,
)
from serving.sessions import LEASE_S

pytestmark = pytest.mark.integration

LONG = Sampling(max_tokens=1500, temperature=2.0, seed=5)
HANG_S = 15.0
"""Far above what is needed and below an engine's restart: waiting for that would be a hang."""
EMPTY_S = LEASE_S / 2
"""Longest wait for sessions to be empty: after their lease they are closed, whatever they hold."""
NUM_SLOTS = ServingConfig().max_num_seqs
NUM_FLOOD = 10_000


def ask(text: str, sampling: Sampling = LONG, **fields: Any) -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", text)]), sampling, **fields)


async def write(engine: ActorGenerator, request: GenerateRequest) -> str:
    return "".join([chunk.text async for chunk in engine.generate(request)])


async def nothing_held(engine: ActorGenerator) -> None:
    """Return once the actor holds nothing, and the client waits for nothing."""
    async with asyncio.timeout(EMPTY_S):
        while (found := await held_in_actor(engine)) != Held():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
    assert found == Held()
    link = engine._links.get(asyncio.get_running_loop())
    assert link is None or not link._inboxes


class Load:
    """Requests under way: several stream, others wait."""

    def __init__(self, engine: ActorGenerator, adapter: str | None = None) -> None:
        self.begun: set[int] = set()
        self.tasks = [
            asyncio.create_task(self._read(engine, number, adapter)) for number in range(2 * NUM_SLOTS)
        ]

    async def _read(self, engine: ActorGenerator, number: int, adapter: str | None) -> None:
        request = ask(f"{number}", replace(LONG, seed=number), adapter=adapter if number % 2 else None)
        async for _ in engine.generate(request):
            self.begun.add(number)

    async def under_way(self, engine: ActorGenerator) -> None:
        async with asyncio.timeout(60):
            while len(self.begun) < 8 or (await engine.stats()).num_waiting < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def failures(self) -> list[BaseException | None]:
        """Return what each request ended with, none of which may hang."""
        _, hanging = await asyncio.wait(self.tasks, timeout=HANG_S)
        assert not hanging, f"{len(hanging)} requests of a dead engine hang"
        return [task.exception() for task in self.tasks]


async def test_a_killed_actor_fails_its_requests_quickly_and_comes_back(engine: ActorGenerator) -> None:
    health = await engine.health()
    assert health.status == "ready"
    load = Load(engine)
    await load.under_way(engine)
    os.kill(health.pid, signal.SIGKILL)
    for error in await load.failures():
        assert isinstance(error, GeneratorUnavailable)
        assert "send" in str(error)
    ready = await engine.ready()
    assert ready.pid != health.pid
    assert await write(engine, ask("back again", Sampling(max_tokens=4))) is not None
    await nothing_held(engine)


async def test_an_engine_that_dies_in_its_actor_fails_all_and_comes_back_empty(
    spare_engine: ActorGenerator, tmp_path: Path
) -> None:
    engine = spare_engine
    info = await engine.load_adapter("a", write_adapter(tmp_path, 1))
    pid = (await engine.health()).pid
    load = Load(engine, info.adapter_id)
    await load.under_way(engine)
    assert (await held_in_actor(engine)).adapter_uses > 0
    await in_actor(engine, break_engine)
    for error in await load.failures():
        assert isinstance(error, GeneratorUnavailable)
        assert "The engine died (RuntimeError: out of ink)" in str(error)
    assert (await engine.health()).status == "failed"
    async with asyncio.timeout(120):
        while (ready := await engine.ready()).pid == pid:  # noqa: ASYNC110 - it leaves by itself
            await asyncio.sleep(0.2)
    assert ready.pid != pid
    await nothing_held(engine)
    with pytest.raises(UnknownAdapter, match="loaded are: none"):
        await write(engine, ask("x", adapter=info.adapter_id))
    assert await write(engine, ask("back again", Sampling(max_tokens=4))) is not None


def break_engine(actor: Any) -> None:
    """Have the engine's next step raise."""
    from concurrent.futures import Future

    from serving.inproc_driver import _Call

    def fail() -> None:
        raise RuntimeError("out of ink")

    actor._generator._driver._commands.put(_Call(lambda engine: setattr(engine, "step", fail), Future()))


async def test_a_flood_of_ten_thousand_is_refused_but_for_its_room_and_holds_up_nobody(
    engine: ActorGenerator,
) -> None:
    await nothing_held(engine)
    actor = psutil.Process((await engine.health()).pid)
    bytes_before = actor.memory_info().rss
    answered: list[str] = []
    refused: list[Overloaded] = []

    async def send(number: int) -> None:
        sampling = replace(LONG, max_tokens=100, seed=number)
        try:
            answered.append(await write(engine, ask(f"{number}", sampling, tenant="flood")))
        except Overloaded as error:
            refused.append(error)

    flood = [asyncio.create_task(send(number)) for number in range(NUM_FLOOD)]
    async with asyncio.timeout(60):
        assert await write(engine, ask("And me?", Sampling(max_tokens=4), tenant="light")) is not None
        assert sum(not task.done() for task in flood) > NUM_SLOTS, "it did not wait for the flood's end"
        # A fifth of the queue is kept for others; what was answered by now made room for as many.
        room = NUM_SLOTS + ServingConfig().max_queued_requests
        while len(refused) < NUM_FLOOD - room - len(answered):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
    assert len(refused) > 0.9 * NUM_FLOOD
    assert all(error.retry_after_s > 0 and "tenant 'flood'" in str(error) for error in refused)
    for task in flood:
        task.cancel()
    for result in await asyncio.gather(*flood, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    await nothing_held(engine)
    assert actor.memory_info().rss - bytes_before < 256 << 20
    assert await write(engine, ask("And now?", Sampling(max_tokens=4), tenant="flood")) is not None


async def test_readers_that_sleep_keep_no_slots_and_get_all_of_their_text(engine: ActorGenerator) -> None:
    num_asleep, wake = NUM_SLOTS + 8, asyncio.Event()
    begun: list[str] = []

    async def read_slowly(seed: int) -> list[GeneratedChunk]:
        async with aclosing(
            engine.generate(ask(f"{seed}", replace(LONG, max_tokens=40, seed=seed)))
        ) as chunks:
            first = await anext(chunks)
            begun.append(first.text)
            await wake.wait()
            return [first, *[chunk async for chunk in chunks]]

    asleep = [asyncio.create_task(read_slowly(seed)) for seed in range(num_asleep)]
    async with asyncio.timeout(60):
        while len(begun) < num_asleep:  # noqa: ASYNC110 - they are more than there are slots
            await asyncio.sleep(0.02)
    await nothing_held(engine)
    async with asyncio.timeout(60):
        assert await write(engine, ask("awake", Sampling(max_tokens=4))) is not None
    assert not any(task.done() for task in asleep)
    wake.set()
    for chunks in await asyncio.gather(*asleep):
        usage = chunks[-1].usage
        assert usage is not None
        assert chunks[-1].finish_reason in ("stop", "length")
        assert usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) > 0
        assert len(chunks) <= 3, "what came meanwhile waits as one chunk"
    await nothing_held(engine)
