"""Many streams over few messages: nothing lost, nothing left behind."""

from __future__ import annotations

import asyncio

import pytest
from fakes_serving import ScriptedGenerator

from serving import sessions as sessions_module
from serving.errors import GeneratorUnavailable, Overloaded
from serving.sessions import Delivery, SessionLost, Sessions, merge_chunks
from serving.types import GeneratedChunk, GenerateRequest, Prompt, Sampling, Segment, TokenUsage

REQUEST = GenerateRequest(Prompt((Segment("question", "write"),)), Sampling(max_tokens=500))


async def drain(sessions: Sessions, session_id: str, num_requests: int) -> list[list[Delivery]]:
    """Return the polls until that many requests have ended."""
    polls: list[list[Delivery]] = []
    while num_requests:
        polls.append(await sessions.poll(session_id))
        num_requests -= sum(
            delivery.error is not None or bool(delivery.chunk and delivery.chunk.finish_reason)
            for delivery in polls[-1]
        )
    return polls


def text_of(polls: list[list[Delivery]], number: int) -> str:
    return "".join(d.chunk.text for poll in polls for d in poll if d.number == number and d.chunk)


async def test_interleaved_streams_arrive_whole_in_few_messages() -> None:
    sessions = Sessions(ScriptedGenerator(lambda r: r.request_id * 300, token_delay_s=0.001))
    session_id = sessions.open()
    for number in range(8):
        request = GenerateRequest(REQUEST.prompt, REQUEST.sampling, request_id="abcdefgh"[number])
        sessions.submit(session_id, number, request)
    polls = await drain(sessions, session_id, 8)
    for number in range(8):
        assert text_of(polls, number) == "abcdefgh"[number] * 300
    assert len(polls) < 100, "2,400 tokens should share messages"


async def test_a_first_token_does_not_wait_for_company() -> None:
    sessions = Sessions(ScriptedGenerator("slow and steady", token_delay_s=0.02))
    session_id = sessions.open()
    sessions.submit(session_id, 0, REQUEST)
    (delivery,) = await sessions.poll(session_id)
    assert delivery.chunk is not None
    assert delivery.chunk.text == "s"
    sessions.cancel(session_id, 0)


async def test_an_error_travels_as_a_value() -> None:
    generator = ScriptedGenerator("x", max_num_seqs=1, max_queued_requests=0, token_delay_s=0.05)
    sessions = Sessions(generator)
    session_id = sessions.open()
    sessions.submit(session_id, 0, REQUEST)
    sessions.submit(session_id, 1, REQUEST)
    polls = await drain(sessions, session_id, 2)
    (error,) = [d.error for poll in polls for d in poll if d.error]
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 0.5


async def test_a_bug_in_the_generator_ends_one_request_not_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script(request: GenerateRequest) -> str:
        if request.request_id == "bad":
            raise KeyError("bug")
        return "fine"

    sessions = Sessions(ScriptedGenerator(script))
    session_id = sessions.open()
    sessions.submit(session_id, 0, GenerateRequest(REQUEST.prompt, request_id="bad"))
    sessions.submit(session_id, 1, GenerateRequest(REQUEST.prompt, request_id="good"))
    polls = await drain(sessions, session_id, 2)
    (error,) = [d.error for poll in polls for d in poll if d.error]
    assert isinstance(error, GeneratorUnavailable)
    assert "KeyError" in str(error)
    assert text_of(polls, 1) == "fine"
    assert [record.message for record in caplog.records] == ["a request failed"]


async def test_cancel_reaches_the_generator_and_ends_the_poll() -> None:
    generator = ScriptedGenerator("x" * 500, token_delay_s=0.01)
    sessions = Sessions(generator)
    session_id = sessions.open()
    sessions.submit(session_id, 0, REQUEST)
    await sessions.poll(session_id)
    polling = asyncio.create_task(sessions.poll(session_id))
    await asyncio.sleep(0)
    sessions.cancel(session_id, 0)
    async with asyncio.timeout(2):
        assert await polling == []
    assert (await generator.stats()).num_cancelled == 1
    sessions.cancel(session_id, 0)


async def test_an_idle_poll_returns_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "POLL_S", 0.05)
    sessions = Sessions(ScriptedGenerator("x"))
    assert await sessions.poll(sessions.open()) == []


async def test_a_silent_client_loses_its_session_and_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "LEASE_S", 0.05)
    generator = ScriptedGenerator("x" * 500, token_delay_s=0.01)
    sessions = Sessions(generator)
    silent, awake = sessions.open(), sessions.open()
    sessions.submit(silent, 0, REQUEST)
    waiting = asyncio.create_task(sessions.poll(awake))
    await asyncio.sleep(0.1)
    assert sessions.close_silent() == [silent]
    await asyncio.sleep(0.05)
    stats = await generator.stats()
    assert (stats.num_running, stats.num_cancelled) == (0, 1)
    with pytest.raises(SessionLost):
        await sessions.poll(silent)
    waiting.cancel()


async def test_told_means_that_the_client_has_taken_the_last_word() -> None:
    sessions = Sessions(ScriptedGenerator("x" * 5, token_delay_s=0.001))
    session_id = sessions.open()
    await asyncio.wait_for(sessions.told(), 5)
    sessions.submit(session_id, 0, REQUEST)
    telling = asyncio.create_task(sessions.told())
    await asyncio.sleep(0.1)
    assert not telling.done(), "nobody has asked for the end yet"
    await drain(sessions, session_id, 1)
    await asyncio.wait_for(telling, 5)


async def test_an_unknown_session_is_lost_not_empty() -> None:
    sessions = Sessions(ScriptedGenerator("x"))
    with pytest.raises(SessionLost):
        sessions.submit("gone", 0, REQUEST)
    with pytest.raises(SessionLost):
        await sessions.poll("gone")


def test_merging_keeps_order_end_and_usage() -> None:
    usage = TokenUsage(3, 0, 2)
    merged = merge_chunks(
        [GeneratedChunk("a", (1,)), GeneratedChunk("b", (2,)), GeneratedChunk("", (), "stop", usage)]
    )
    assert merged == GeneratedChunk("ab", (1, 2), "stop", usage)
