"""A generator's actor that ends with a grace: what it has accepted is answered, what comes then is refused.

The actor, its sessions and Ray are the real ones; the engine writes letters, so that none has to be loaded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from letter_engine import LetterEngine, ask, build, collect
from tiny_model import build_tiny_model

from serving import ActorGenerator, GeneratedChunk, GeneratorUnavailable, ServingConfig
from serving.actor import GeneratorActor
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver
from serving.sessions import Sessions

pytestmark = pytest.mark.integration

LETTERS_PER_S = 100


class LetterActor(GeneratorActor):
    """The actor over another engine."""

    def __init__(self, config: ServingConfig) -> None:
        engine = LetterEngine(step_s=1 / LETTERS_PER_S)
        self._generator = LocalGenerator(config, InprocDriver(config, config.model, build=build(engine)))
        self._at_end = None
        self._sessions = Sessions(self._generator)
        self._watch = None
        self._beginning = asyncio.create_task(self._begin())


@pytest.fixture
async def letters(ray_session: None, tmp_path: Path) -> AsyncIterator[ActorGenerator]:
    import ray

    config = ServingConfig(model=str(build_tiny_model(tmp_path)))
    here = Path(__file__).parent
    actor = ray.remote(LetterActor).options(
        num_cpus=0,
        max_concurrency=100,
        runtime_env={"env_vars": {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}},
    )
    client = ActorGenerator(actor.remote(config))
    await client.ready()
    yield client
    await client.stop()


async def stopping_under_a_stream(
    letters: ActorGenerator, num_letters: int, drain_s: float
) -> tuple[asyncio.Task[None], asyncio.Task[list[GeneratedChunk]]]:
    """Return the end of a generator, and the rest of a stream that was under way when it began."""
    begun = asyncio.Event()

    async def read() -> list[GeneratedChunk]:
        chunks = []
        async with aclosing(letters.generate(ask(num_letters))) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                begun.set()
        return chunks

    reading = asyncio.create_task(read())
    await begun.wait()
    stopping = asyncio.create_task(letters.stop(drain_s))
    while (await letters.health()).status == "ready":  # noqa: ASYNC110 - the actor is another process
        await asyncio.sleep(0.01)
    return stopping, reading


async def test_an_actor_with_a_grace_ends_its_streams_and_refuses_others(letters: ActorGenerator) -> None:
    stopping, reading = await stopping_under_a_stream(letters, 3 * LETTERS_PER_S, drain_s=60.0)
    assert (await letters.health()).status == "draining"
    with pytest.raises(GeneratorUnavailable, match="draining"):
        await collect(letters, ask())  # pyright: ignore[reportArgumentType]
    chunks = await reading
    assert "".join(chunk.text for chunk in chunks) == "a" * 3 * LETTERS_PER_S
    assert chunks[-1].finish_reason == "length"
    async with asyncio.timeout(30):
        await stopping
    assert (await letters.health()).status == "failed"


async def test_a_grace_that_is_over_ends_the_stream_with_an_error(letters: ActorGenerator) -> None:
    stopping, reading = await stopping_under_a_stream(letters, 200 * LETTERS_PER_S, drain_s=0.3)
    async with asyncio.timeout(60):
        with pytest.raises(GeneratorUnavailable):
            await reading
        await stopping
