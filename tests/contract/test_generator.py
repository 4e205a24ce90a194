"""What every `Generator` promises, over the scripted fake, the engine behind its actor, and two of each."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import replace

import pytest
from fakes_replica import ScriptedReplica
from fakes_serving import ScriptedGenerator

from serving.config import ServingConfig
from serving.errors import InvalidGeneration, Overloaded, PromptTooLong
from serving.prompt import PromptPassage, Turn, chat_prompt, rag_prompt
from serving.routing.routed_generator import RoutedGenerator
from serving.types import (
    Constraint,
    GeneratedChunk,
    GenerateRequest,
    Generator,
    GeneratorStats,
    KVReuse,
    Prompt,
    ReuseMode,
    Sampling,
    Segment,
)

SCRIPT = "Paged attention keeps the cache in blocks, so that memory is not lost to padding. " * 40
FRESH = itertools.count()
LONG = Sampling(max_tokens=1500, temperature=2.0, seed=11)
"""Draws almost evenly from the vocabulary, so that a generation does not end by itself for long."""


@pytest.fixture(
    params=[
        "scripted",
        "scripted replicas",
        pytest.param("engine", marks=pytest.mark.integration),
        pytest.param("engines", marks=pytest.mark.integration),
    ]
)
def generator(request: pytest.FixtureRequest) -> Generator:
    if request.param == "engine":
        return request.getfixturevalue("engine")
    if request.param == "engines":
        return RoutedGenerator([request.getfixturevalue(name) for name in ("engine", "spare_engine")])
    if request.param == "scripted replicas":
        return RoutedGenerator([ScriptedReplica(SCRIPT, token_delay_s=0.001) for _ in range(2)])
    return ScriptedGenerator(SCRIPT, token_delay_s=0.001)


def ask(text: str = "What is paged attention?", **fields: object) -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", text)]), **fields)  # type: ignore[arg-type]


def fresh_text() -> str:
    """Return a text longer than two KV blocks that no earlier test has sent."""
    return f"{next(FRESH)} is the number of this question about memory. " * 8


async def collect(generator: Generator, request: GenerateRequest) -> list[GeneratedChunk]:
    return [chunk async for chunk in generator.generate(request)]


async def settled(generator: Generator, num_cancelled: int) -> GeneratorStats:
    """Return the stats once `num_cancelled` cancels are counted and nothing runs, or the last ones seen."""
    for _ in range(200):
        stats = await generator.stats()
        if stats.num_cancelled >= num_cancelled and not stats.num_running and not stats.num_waiting:
            break
        await asyncio.sleep(0.02)
    return stats


async def test_only_the_last_chunk_carries_reason_and_usage(generator: Generator) -> None:
    chunks = await collect(generator, ask(sampling=Sampling(max_tokens=20)))
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None


async def test_usage_counts_prompt_and_streamed_tokens(generator: Generator) -> None:
    request = ask(fresh_text(), sampling=Sampling(max_tokens=25))
    chunks = await collect(generator, request)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == await generator.count_tokens(request.prompt)
    assert usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks)
    assert 1 <= usage.completion_tokens <= 25
    assert (usage.completion_tokens == 25) or chunks[-1].finish_reason == "stop"


async def test_totals_grow_by_the_usage_of_each_request(generator: Generator) -> None:
    before = await generator.stats()
    usage = (await collect(generator, ask(fresh_text(), sampling=Sampling(max_tokens=9))))[-1].usage
    after = await generator.stats()
    assert usage is not None
    assert after.num_finished == before.num_finished + 1
    assert after.prompt_tokens == before.prompt_tokens + usage.prompt_tokens
    assert after.completion_tokens == before.completion_tokens + usage.completion_tokens


async def test_temperature_zero_writes_the_same_text_again(generator: Generator) -> None:
    request = ask(fresh_text(), sampling=Sampling(max_tokens=24))
    first, second = await collect(generator, request), await collect(generator, request)
    assert "".join(c.text for c in first) == "".join(c.text for c in second)
    assert [t for c in first for t in c.token_ids] == [t for c in second for t in c.token_ids]


async def test_a_seed_fixes_the_drawn_tokens(generator: Generator) -> None:
    request = ask(sampling=Sampling(max_tokens=24, temperature=1.5, seed=3))
    first, second = await collect(generator, request), await collect(generator, request)
    assert [t for c in first for t in c.token_ids] == [t for c in second for t in c.token_ids]


async def test_a_stop_string_ends_the_text_before_it(generator: Generator) -> None:
    # Hot and seeded: long enough to cut whatever the model has learnt, and the same both times.
    sampling = Sampling(max_tokens=40, temperature=2.0, seed=11)
    request = ask(fresh_text(), sampling=sampling)
    whole = "".join(chunk.text for chunk in await collect(generator, request))
    stop = next(whole[i : i + 3] for i in range(3, len(whole)) if whole[i : i + 3].isascii())
    cut = await collect(generator, replace(request, sampling=replace(sampling, stop=(stop,))))
    assert "".join(chunk.text for chunk in cut) == whole[: whole.index(stop)]
    assert cut[-1].finish_reason == "stop"


async def test_one_of_the_choices_is_written_and_nothing_else(generator: Generator) -> None:
    for choices in (("no", "not at all", "yes"), ("only this",)):
        sampling = Sampling(max_tokens=30, constraint=Constraint(choices=choices))
        chunks = await collect(generator, ask(sampling=sampling))
        assert "".join(chunk.text for chunk in chunks) in choices
        assert chunks[-1].finish_reason == "stop"


async def test_closing_the_iterator_frees_the_slot(generator: Generator) -> None:
    before = await generator.stats()
    async with aclosing(generator.generate(ask(sampling=LONG))) as chunks:  # type: ignore[type-var]
        await anext(chunks)
    after = await settled(generator, before.num_cancelled + 1)
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_cancelled == before.num_cancelled + 1


async def test_cancelling_the_reading_task_frees_the_slot(generator: Generator) -> None:
    before = await generator.stats()
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in generator.generate(ask(sampling=LONG)):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after = await settled(generator, before.num_cancelled + 1)
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_cancelled == before.num_cancelled + 1


async def test_a_deadline_keeps_the_partial_text_and_frees_the_slot(generator: Generator) -> None:
    before = await generator.stats()
    chunks = await collect(generator, ask(sampling=LONG, deadline_s=1.0))
    assert chunks[-1].finish_reason == "deadline"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) > 0
    assert "".join(chunk.text for chunk in chunks)
    assert (await settled(generator, before.num_cancelled + 1)).num_running == 0


async def test_a_deadline_drops_no_token_between_pieces(generator: Generator) -> None:
    cut = ask("Write on and on.", sampling=LONG, deadline_s=0.5)
    text, token_ids = "", ()
    for chunk in await collect(generator, cut):
        text, token_ids = text + chunk.text, token_ids + chunk.token_ids
    assert chunk.finish_reason == "deadline"
    whole = await collect(
        generator, replace(cut, sampling=replace(LONG, max_tokens=len(token_ids)), deadline_s=None)
    )
    assert token_ids == tuple(token for chunk in whole for token in chunk.token_ids)
    assert text == "".join(chunk.text for chunk in whole)


@pytest.mark.parametrize("mode", ["exact", "reorder", "blend"])
async def test_a_prompt_without_room_is_refused_with_both_numbers_and_costs_nothing(
    generator: Generator, mode: ReuseMode
) -> None:
    limit = (await generator.info()).max_model_len
    passages = [PromptPassage(f"{number}", "title", "word " * 600) for number in range(5)]
    prompt = rag_prompt("why?", passages)
    num_tokens = await generator.count_tokens(prompt)
    before = await generator.stats()
    with pytest.raises(PromptTooLong, match=f"{num_tokens} tokens.*{limit}"):
        await collect(generator, GenerateRequest(prompt, reuse=KVReuse(mode)))
    assert await generator.stats() == before


async def test_max_tokens_is_cut_to_the_room_left(generator: Generator) -> None:
    limit = (await generator.info()).max_model_len
    prompt = Prompt((Segment("question", "a"),))
    while await generator.count_tokens(prompt) < limit - 60:
        prompt = Prompt((*prompt.segments, Segment("question", " stone 71 river" * 2)))
    room = limit - await generator.count_tokens(prompt)
    assert 0 < room <= 60
    chunks = await collect(generator, GenerateRequest(prompt, replace(LONG, max_tokens=5000)))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= room


async def test_sixteen_requests_at_once_are_all_answered(generator: Generator) -> None:
    requests = [ask(f"{i} " + "again " * i, sampling=Sampling(max_tokens=16)) for i in range(16)]
    expected = [await generator.count_tokens(request.prompt) for request in requests]
    answers = await asyncio.gather(*(collect(generator, request) for request in requests))
    assert [chunks[-1].usage.prompt_tokens for chunks in answers if chunks[-1].usage] == expected
    assert all(chunks[-1].finish_reason in ("stop", "length") for chunks in answers)


async def test_a_repeated_prompt_reuses_cached_tokens(generator: Generator) -> None:
    request = ask(fresh_text(), sampling=Sampling(max_tokens=2))
    first, second = await collect(generator, request), await collect(generator, request)
    assert first[-1].usage is not None
    assert second[-1].usage is not None
    assert second[-1].usage.cached_tokens > first[-1].usage.cached_tokens
    assert second[-1].usage.cached_tokens < second[-1].usage.prompt_tokens


async def test_cached_tokens_are_never_shared_between_tenants(generator: Generator) -> None:
    request = ask(fresh_text(), sampling=Sampling(max_tokens=2), tenant="north")
    await collect(generator, request)
    other = await collect(generator, replace(request, tenant="south"))
    assert other[-1].usage is not None
    assert other[-1].usage.cached_tokens == 0


async def test_a_canonical_order_answers_as_if_written_so_and_shares_its_prefix(generator: Generator) -> None:
    passages = [PromptPassage(one, one, f"{one}: {fresh_text()}") for one in ("b", "c", "a")]
    sampling = Sampling(max_tokens=12)
    given, sorted_ones = (
        GenerateRequest(rag_prompt("why?", chosen), sampling)
        for chosen in (passages, sorted(passages, key=str))
    )
    exact = await collect(generator, sorted_ones)
    reordered = await collect(generator, replace(given, reuse=KVReuse("reorder", order="canonical")))
    assert reordered[-1].chunk_order == ("a", "b", "c")
    assert exact[-1].chunk_order == ()
    assert [t for c in reordered for t in c.token_ids] == [t for c in exact for t in c.token_ids]
    assert reordered[-1].usage is not None
    assert reordered[-1].usage.mode == "reorder"
    assert reordered[-1].usage.cached_tokens > reordered[-1].usage.prompt_tokens // 2


async def test_a_greedy_order_begins_as_an_earlier_prompt_did(generator: Generator) -> None:
    passages = [PromptPassage(f"{next(FRESH)}", "title", fresh_text()) for _ in range(4)]
    reuse, sampling = KVReuse("reorder"), Sampling(max_tokens=1)
    await collect(generator, GenerateRequest(rag_prompt("who?", passages[:3]), sampling, reuse=reuse))
    request = GenerateRequest(rag_prompt("why?", passages[::-1]), sampling, reuse=reuse)
    last = (await collect(generator, request))[-1]
    assert last.chunk_order == tuple(passage.chunk_id for passage in passages)
    assert last.usage is not None
    assert last.usage.cached_tokens > last.usage.prompt_tokens // 2


async def test_a_request_id_under_way_is_refused(generator: Generator) -> None:
    request = ask(sampling=LONG, request_id="the-same")
    async with aclosing(generator.generate(request)) as chunks:  # type: ignore[type-var]
        await anext(chunks)
        with pytest.raises(InvalidGeneration, match="the-same"):
            await collect(generator, request)


async def test_a_request_id_can_be_used_again_once_it_has_ended(generator: Generator) -> None:
    request = ask(sampling=Sampling(max_tokens=2), request_id="again")
    for _ in range(2):
        assert (await collect(generator, request))[-1].finish_reason in ("stop", "length")


async def test_a_full_queue_refuses_and_drains_when_its_callers_leave(generator: Generator) -> None:
    config = ServingConfig()
    capacity = config.max_num_seqs + config.max_queued_requests
    before = await generator.stats()
    tasks: list[asyncio.Task[list[GeneratedChunk]]] = []
    refused: list[BaseException] = []
    # Some may end by themselves while others arrive; a generator that never refuses exhausts the range.
    for i in range(4 * capacity):
        tasks.append(asyncio.create_task(collect(generator, ask(f"{i}", sampling=replace(LONG, seed=i)))))
        if i >= capacity:
            await asyncio.sleep(0.01)
        refused = [error for task in tasks if task.done() and (error := task.exception()) is not None]
        if refused:
            break
    assert refused, f"{len(tasks)} requests were accepted, the limit is {capacity}"
    assert all(isinstance(error, Overloaded) and error.retry_after_s > 0 for error in refused)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    after = await settled(generator, before.num_cancelled + 1)
    assert (after.num_running, after.num_waiting) == (0, 0)


async def test_a_tenants_flood_leaves_room_and_turns_to_others(generator: Generator) -> None:
    config = ServingConfig()
    before = await generator.stats()
    flood: list[asyncio.Task[list[GeneratedChunk]]] = []
    for i in range(2 * (config.max_num_seqs + config.max_queued_requests)):
        request = ask(f"{i}", sampling=replace(LONG, max_tokens=100, seed=i), tenant="flood")
        flood.append(asyncio.create_task(collect(generator, request)))
    while not any(task.done() for task in flood):  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.02)
    refused = [error for task in flood if task.done() and (error := task.exception()) is not None]
    assert refused
    assert all(isinstance(error, Overloaded) and "tenant 'flood'" in str(error) for error in refused)
    async with asyncio.timeout(60):
        light = await collect(generator, ask(tenant="light", sampling=Sampling(max_tokens=2)))
    assert light[-1].finish_reason in ("stop", "length")
    waiting = (await generator.stats()).num_waiting
    assert waiting > config.max_queued_requests / 2, "the light one did not wait for the flood's end"
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    after = await settled(generator, before.num_cancelled + 1)
    assert (after.num_running, after.num_waiting) == (0, 0)
