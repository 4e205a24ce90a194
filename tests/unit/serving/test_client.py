"""The client of a generator actor, over sessions in this process in its place: few calls, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes_serving import ScriptedGenerator

from serving.client import MAX_BATCH, ActorGenerator
from serving.errors import GeneratorUnavailable
from serving.sessions import Sessions
from serving.spans import TraceContext
from serving.types import GenerateRequest, Prompt, Sampling, Segment

REQUEST = GenerateRequest(Prompt((Segment("question", "write"),)), Sampling(max_tokens=3))


class Method:
    """A method of an actor."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        self.calls.append(arguments)
        return asyncio.ensure_future(self._run(*arguments))

    async def _run(self, *arguments: Any) -> Any:
        found = self._work(*arguments)
        return await found if asyncio.iscoroutine(found) else found


class Actor:
    """As much of `GeneratorActor` as the client needs."""

    def __init__(self, generator: ScriptedGenerator) -> None:
        self.sessions = Sessions(generator)  # type: ignore[arg-type]
        self.open_session = Method(self.sessions.open)
        self.submit = Method(self._submit)
        self.poll = Method(self.sessions.poll)
        self.cancel = Method(self._cancel)

    def _submit(self, session_id: str, requests: dict[int, tuple[GenerateRequest, TraceContext]]) -> None:
        for number, (request, asking) in requests.items():
            self.sessions.submit(session_id, number, request, asking)

    def _cancel(self, session_id: str, numbers: list[int]) -> None:
        for number in numbers:
            self.sessions.cancel(session_id, number)


@pytest.fixture
def actor() -> Actor:
    return Actor(ScriptedGenerator("abc", max_num_seqs=1000, max_queued_requests=1000))


def client_of(actor: Actor) -> ActorGenerator:
    stub: Any = actor
    return ActorGenerator(stub)


async def write(client: ActorGenerator, request: GenerateRequest = REQUEST) -> str:
    return "".join([chunk.text async for chunk in client.generate(request)])


async def test_what_is_asked_for_at_once_travels_as_few_calls(actor: Actor) -> None:
    client, num_requests = client_of(actor), 2 * MAX_BATCH + 1
    texts = await asyncio.gather(*(write(client) for _ in range(num_requests)))
    assert texts == ["abc"] * num_requests
    assert [len(batch) for _, batch in actor.submit.calls] == [MAX_BATCH, MAX_BATCH, 1]
    assert not actor.cancel.calls


async def test_requests_left_at_once_are_cancelled_with_few_calls() -> None:
    generator = ScriptedGenerator("abc" * 500, token_delay_s=0.01)
    actor = Actor(generator)
    client = client_of(actor)
    long = GenerateRequest(REQUEST.prompt, Sampling(max_tokens=1000))
    tasks = [asyncio.create_task(write(client, long)) for _ in range(20)]
    async with asyncio.timeout(10):
        while (await generator.stats()).num_running < 20:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while (await generator.stats()).num_cancelled < 20:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
    assert [len(numbers) for _, numbers in actor.cancel.calls] == [20]


async def test_a_request_that_is_left_before_it_is_sent_is_never_sent(actor: Actor) -> None:
    client = client_of(actor)
    assert await write(client) == "abc"
    link = client._links[asyncio.get_running_loop()]
    number, _ = link.submit(REQUEST)
    link.forget(number)
    assert await write(client) == "abc"
    assert [list(batch) for _, batch in actor.submit.calls] == [[number - 1], [number + 1]]
    assert not actor.cancel.calls


async def test_what_cannot_be_sent_is_told_to_who_waits(actor: Actor) -> None:
    client = client_of(actor)

    def refuse(*_: object) -> None:
        raise TypeError("cannot be pickled")

    actor.submit.remote = refuse  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(10):
        results = await asyncio.gather(*(write(client) for _ in range(3)), return_exceptions=True)
    for result in results:
        assert isinstance(result, GeneratorUnavailable)
        assert "cannot be pickled" in str(result)


async def test_requests_of_a_lost_session_are_sent_again_on_a_new_one(actor: Actor) -> None:
    client = client_of(actor)
    assert await write(client) == "abc"
    actor.sessions._sessions.clear()
    async with asyncio.timeout(10):
        texts = await asyncio.gather(*(write(client) for _ in range(MAX_BATCH + 5)))
    assert texts == ["abc"] * (MAX_BATCH + 5)
    assert len(actor.open_session.calls) == 2
