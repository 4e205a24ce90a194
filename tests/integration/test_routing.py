"""What an engine tells of its KV is what it then finds, and a replica that dies is not noticed."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from dataclasses import replace

import pytest
from letter_engine import until

from serving import ActorGenerator
from serving.errors import GeneratorUnavailable, ServingError
from serving.prompt import PromptPassage, rag_prompt
from serving.routing.prompt_path import prompt_path
from serving.routing.replica_view import ReplicaView
from serving.routing.routed_generator import RoutedGenerator
from serving.types import GenerateRequest, KVReuse, Sampling, TokenUsage

pytestmark = pytest.mark.integration

TOPICS = (
    "blocks of keys and values",
    "trees of prefixes",
    "angles of rotation",
    "queues and turns",
    "adapters",
)
FRESH = itertools.count()


def passages(tenant: str) -> list[PromptPassage]:
    return [
        PromptPassage(f"{tenant} {number}", f"Note {number} on {topic}", f"This is about {topic}. " * 12)
        for number, topic in enumerate(TOPICS)
    ]


def fresh_tenant() -> str:
    return f"routing {next(FRESH)}"


def ask(
    order: tuple[int, ...], tenant: str, question: str = "What is this about?", **fields: object
) -> GenerateRequest:
    pool = passages(tenant)
    prompt = rag_prompt(question, [pool[number] for number in order])
    return GenerateRequest(prompt, Sampling(max_tokens=1), tenant=tenant, **fields)  # type: ignore[arg-type]


async def usage_of(generator: ActorGenerator, request: GenerateRequest) -> TokenUsage:
    chunks = [chunk async for chunk in generator.generate(request)]
    assert chunks[-1].usage is not None
    return chunks[-1].usage


async def read_all(generator: ActorGenerator, view: ReplicaView) -> None:
    """Have a router's view read reports until they say nothing new, once something was said."""
    for num_same in range(100):
        version = view.version
        view.take(await generator.kv_report(view.life, view.version), view.asked())
        if num_same > 3 and view.version == version:
            return
        await asyncio.sleep(0.05)


async def test_a_router_knows_how_many_tokens_a_prompt_will_find(spare_engine: ActorGenerator) -> None:
    view, tenant = ReplicaView(), fresh_tenant()
    rng = random.Random(3)
    for number in range(6):
        await usage_of(spare_engine, ask(tuple(rng.sample(range(5), 3)), tenant, f"Question {number}?"))
    await read_all(spare_engine, view)
    expected, found = [], []
    for number in range(6):
        request = ask(tuple(rng.sample(range(5), 3)), tenant, f"Another question {number}?")
        expected.append(view.reusable(prompt_path(request, is_blended=False)).device_tokens)
        found.append((await usage_of(spare_engine, request)).cached_tokens)
        await read_all(spare_engine, view)
    assert found == expected
    assert any(found)


async def test_a_router_knows_what_a_reordered_prompt_will_find(spare_engine: ActorGenerator) -> None:
    view, tenant = ReplicaView(), fresh_tenant()
    reorder = KVReuse("reorder")
    await usage_of(spare_engine, ask((2, 0, 1), tenant, reuse=reorder))
    await read_all(spare_engine, view)
    request = ask((1, 2, 0), tenant, "And this?", reuse=reorder)
    expected = view.reusable(prompt_path(request, is_blended=False)).device_tokens
    assert (await usage_of(spare_engine, request)).cached_tokens == expected > 0


async def test_what_was_evicted_is_told(spare_engine: ActorGenerator) -> None:
    view, tenant = ReplicaView(), fresh_tenant()
    first = ask((0, 1, 2), tenant)
    await usage_of(spare_engine, first)
    await read_all(spare_engine, view)
    path = prompt_path(first, is_blended=False)
    assert view.reusable(path).device_tokens > 0
    for _ in range(200):
        others = [usage_of(spare_engine, ask((0, 1, 2, 3, 4), fresh_tenant())) for _ in range(16)]
        await asyncio.gather(*others)
        await read_all(spare_engine, view)
        if not view.reusable(path).device_tokens:
            break
    assert view.reusable(path).device_tokens == 0
    assert (await usage_of(spare_engine, first)).cached_tokens == 0


async def outcome_of(generator: RoutedGenerator, request: GenerateRequest) -> tuple[bool, Exception | None]:
    """Return whether an answer began, and why it failed."""
    has_begun = False
    try:
        async for _ in generator.generate(request):
            has_begun = True
    except ServingError as error:
        return has_begun, error
    return has_begun, None


async def test_what_a_killed_replica_had_not_begun_is_answered_by_the_other(
    engine: ActorGenerator, spare_engine: ActorGenerator
) -> None:
    routed = RoutedGenerator([engine, spare_engine])
    killed = await spare_engine.health()
    asked = [replace(ask((0, 1, 2), fresh_tenant()), sampling=Sampling(max_tokens=64)) for _ in range(24)]
    answers = [asyncio.create_task(outcome_of(routed, request)) for request in asked]
    lost = routed._router.views[spare_engine]
    await until(lambda: lost.num_own >= 8)
    os.kill(killed.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*answers)
    failed = [(has_begun, error) for has_begun, error in outcomes if error is not None]
    assert all(has_begun and isinstance(error, GeneratorUnavailable) for has_begun, error in failed)
    assert len(failed) < 8, "some that the replica had were answered by the other"
    assert spare_engine in routed._down
    assert await outcome_of(routed, ask((0,), fresh_tenant())) == (True, None)
    assert (await spare_engine.ready()).pid != killed.pid
    await until(lambda: not routed._down)
    assert not any(view.num_own for view in routed._router.views.values())
