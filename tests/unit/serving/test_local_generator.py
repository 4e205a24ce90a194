"""Admission, deadlines, failures and totals, over a driver thread with an engine that writes letters."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from letter_engine import LetterEngine, Start, ask, collect, until

from serving.chunk_kv.idle_work import IdleWork, run_to_end
from serving.chunk_kv.store_stats import StoreStats
from serving.config import ServingConfig
from serving.driver import StartTimings
from serving.errors import GeneratorUnavailable, InvalidGeneration, ModelUnusable, Overloaded, PromptTooLong
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver
from serving.prompt import PromptPassage, rag_prompt
from serving.types import Constraint, GenerateRequest, KVReuse, Prompt, Sampling, Segment


async def test_start_reports_where_the_time_went(start: Start) -> None:
    generator = await start(LetterEngine())
    assert await generator.start() == StartTimings(0.25, 0.5)
    assert generator.health().status == "ready"


async def test_every_token_arrives_once_and_in_order(start: Start) -> None:
    generator = await start(LetterEngine(step_s=0.0))
    chunks = await collect(generator, ask(200))
    assert "".join(chunk.text for chunk in chunks) == "a" * 200
    assert len(chunks) < 200, "tokens between the first and the last should travel together"
    assert len(chunks[0].token_ids) == 1, "the first token does not wait for others"


async def test_a_slow_reader_gets_what_has_piled_up_as_one_chunk(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    async with aclosing(generator.generate(ask(300))) as chunks:
        first = await anext(chunks)
        while engine.busy():  # noqa: ASYNC110 - it runs in a thread of its own
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        rest = await anext(chunks)
    assert len(first.token_ids) + len(rest.token_ids) == 300
    assert rest.finish_reason == "length"


async def test_a_request_of_an_unstarted_generator_is_refused(folder: Path) -> None:
    generator = LocalGenerator(ServingConfig(model=str(folder)))
    with pytest.raises(GeneratorUnavailable, match="start"):
        await collect(generator, ask())
    assert generator.health().status == "starting"


async def test_a_model_that_cannot_load_says_why_and_stays_failed(folder: Path) -> None:
    def refuse(_config: ServingConfig, _folder: str):
        raise RuntimeError("no such head size")

    config = ServingConfig(model=str(folder))
    generator = LocalGenerator(config, InprocDriver(config, str(folder), build=refuse))
    with pytest.raises(ModelUnusable, match="no such head size"):
        await generator.start()
    assert generator.health().status == "failed"
    assert "no such head size" in generator.health().detail
    await generator.stop()


async def test_a_missing_model_folder_is_named() -> None:
    generator = LocalGenerator(ServingConfig(model="./no-such-folder"))
    with pytest.raises(ModelUnusable, match="no-such-folder"):
        await generator.start()
    assert generator.health().status == "failed"
    assert "no-such-folder" in generator.health().detail


async def test_an_engine_that_dies_fails_every_request_and_shows_in_health(start: Start) -> None:
    generator = await start(LetterEngine(breaks_at_step=5, max_num_seqs=2))
    results = await asyncio.gather(*(collect(generator, ask(50)) for _ in range(6)), return_exceptions=True)
    assert len(results) == 6
    for result in results:
        assert isinstance(result, GeneratorUnavailable)
        assert "out of ink" in str(result)
    assert generator.health().status == "failed"
    with pytest.raises(GeneratorUnavailable, match="out of ink"):
        await collect(generator, ask())
    stats = await generator.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


async def test_stopping_fails_what_is_under_way_and_frees_the_model(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    async with aclosing(generator.generate(ask(100_000, text="go on"))) as chunks:
        await anext(chunks)
        await generator.stop()
        with pytest.raises(GeneratorUnavailable, match="stopping"):
            async for _ in chunks:
                pass
    assert engine.closed
    assert generator.health().status == "stopped"
    await generator.stop()


async def test_draining_ends_what_was_accepted_and_takes_nothing_new(start: Start) -> None:
    engine = LetterEngine(sticks=True)
    generator = await start(engine, max_num_seqs=1)
    accepted = [asyncio.create_task(collect(generator, ask(3))) for _ in range(2)]
    await until(lambda: generator._queue.num_waiting == 1 and bool(engine.seen))
    draining = asyncio.create_task(generator.drain())
    await asyncio.sleep(0)
    assert generator.health().status == "draining"
    with pytest.raises(GeneratorUnavailable, match="draining"):
        await collect(generator, ask())
    assert not draining.done()
    engine.stuck.set()
    async with asyncio.timeout(10):
        await draining
    for chunks in accepted:
        assert (await chunks)[-1].finish_reason == "length"
    await generator.stop()
    assert generator.health().status == "stopped"


async def test_a_generator_with_nothing_to_do_is_drained_at_once(start: Start) -> None:
    generator = await start(LetterEngine())
    async with asyncio.timeout(5):
        await generator.drain()


async def test_closing_the_iterator_aborts_in_the_engine(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    async with aclosing(generator.generate(ask(1000))) as chunks:
        await anext(chunks)
    await collect(generator, ask(1))
    assert len(engine.aborted) == 1
    assert (await generator.stats()).num_cancelled == 1


async def test_a_deadline_keeps_the_partial_text_and_what_was_held_back(start: Start) -> None:
    engine = LetterEngine(held_back="tail")
    generator = await start(engine)
    chunks = await collect(generator, ask(100_000, deadline_s=0.1))
    text = "".join(chunk.text for chunk in chunks)
    assert chunks[-1].finish_reason == "deadline"
    assert text.startswith("aa")
    assert text.endswith("tail")
    assert len(engine.aborted) == 1


async def test_a_deadline_holds_even_when_the_engine_is_stuck(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.deadline_reader.ABORT_GRACE_S", 0.1)
    generator = await start(LetterEngine(sticks=True))
    async with asyncio.timeout(5):
        chunks = await collect(generator, ask(deadline_s=0.1))
    assert [chunk.finish_reason for chunk in chunks] == ["deadline"]


async def test_the_default_deadline_applies_to_requests_that_name_none(start: Start) -> None:
    generator = await start(LetterEngine(), default_deadline_s=0.1)
    assert (await collect(generator, ask(100_000)))[-1].finish_reason == "deadline"


async def test_a_full_queue_says_when_to_retry(start: Start) -> None:
    engine = LetterEngine(sticks=True, max_num_seqs=1)
    generator = await start(engine, max_num_seqs=1, max_queued_requests=2)
    accepted = [asyncio.create_task(collect(generator, ask(2))) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded, match=r"limit is 2 .*max_queued_requests") as refused:
        await collect(generator, ask())
    assert refused.value.retry_after_s >= 0.5
    engine.stuck.set()
    for chunks in await asyncio.gather(*accepted):
        assert chunks[-1].finish_reason == "length"
    assert "graft_generator_rejected_total 1.0" in await generator.metrics_text()


async def test_a_prompt_without_room_never_reaches_the_engine(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine, max_model_len=64)
    with pytest.raises(PromptTooLong, match="context window 64"):
        await collect(generator, ask(text="long " * 200))
    assert not engine.written


async def test_max_tokens_is_cut_to_the_window(start: Start) -> None:
    generator = await start(LetterEngine(), max_model_len=64)
    request = ask(1000)
    room = 64 - await generator.count_tokens(request.prompt)
    usage = (await collect(generator, request))[-1].usage
    assert usage is not None
    assert usage.completion_tokens == room


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": ""}, "empty"),
        ({"sampling": Sampling(stop=("refuse me",))}, "refused here"),
        ({"sampling": Sampling(stop=("",))}, "stop string"),
        ({"sampling": Sampling(seed=2**64)}, "seed"),
        ({"priority": 10**12}, "priority"),
        ({"sampling": Sampling(constraint=Constraint(choices=("x",) * 1001))}, "1,000 choices, got 1,001"),
        ({"sampling": Sampling(constraint=Constraint(choices=("x", "")))}, "choice must have 1 to"),
        ({"sampling": Sampling(constraint=Constraint(regex="x" * 2001))}, "regex must have 1 to 2,000"),
        ({"sampling": Sampling(constraint=Constraint(regex=""))}, "regex must have 1 to 2,000"),
        ({"sampling": Sampling(constraint=Constraint(json_schema="{" * 50_001))}, "50,000 characters"),
        ({"sampling": Sampling(constraint=Constraint(regex="((a{200}){200})"))}, "repeats written out"),
        ({"text": "\ud800"}, "surrogate"),
    ],
)
async def test_a_bad_value_is_the_callers_error_and_frees_its_id(
    start: Start, fields: dict[str, object], said: str
) -> None:
    generator = await start(LetterEngine())
    for _ in range(2):
        with pytest.raises(InvalidGeneration, match=said):
            await collect(generator, ask(request_id="mine", **fields))
    assert (await collect(generator, ask(request_id="mine")))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("regex", "said"),
    [
        ("((a{100}){100}){100}", "written out"),
        ("[ab]{9999}{9999}", "written out"),
        (r"(\(x\){40}){40}", None),
        (r"([[{9999}\]]|a){100}", None),
        ("-".join(["[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"] * 20), None),
    ],
)
async def test_repeats_count_where_they_multiply(start: Start, regex: str, said: str | None) -> None:
    generator = await start(LetterEngine())
    request = ask(sampling=Sampling(2, constraint=Constraint(regex=regex)))
    if said is None:
        assert (await collect(generator, request))[-1].finish_reason == "length"
    else:
        with pytest.raises(InvalidGeneration, match=said):
            await collect(generator, request)


@pytest.mark.parametrize(
    ("constraint", "error"),
    [(Constraint(regex="a+"), InvalidGeneration), (None, GeneratorUnavailable)],
)
async def test_a_request_that_the_engine_gives_up_ends_with_an_error_and_nothing_else_does(
    start: Start, constraint: Constraint | None, error: type[Exception]
) -> None:
    engine = LetterEngine(gives_up={2})
    generator = await start(engine)
    other = asyncio.create_task(collect(generator, ask(50)))
    await until(lambda: bool(engine.seen))
    with pytest.raises(error, match=r"constraint|gave up"):
        await collect(generator, ask(sampling=Sampling(2, constraint=constraint)))
    assert (await other)[-1].finish_reason == "length"
    assert (await collect(generator, ask(1)))[-1].finish_reason == "length"


def test_a_constraint_is_one_of_three() -> None:
    for fields in ({}, {"choices": ("a",), "regex": "b"}, {"regex": "a", "json_schema": "{}"}):
        with pytest.raises(ValueError, match="one of choices, regex and json_schema"):
            Constraint(**fields)  # type: ignore[arg-type]


async def test_tenants_get_different_salts_and_priorities_reach_the_engine(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    for tenant, priority in (("a", 0), ("b", 10), ("a", 20)):
        await collect(generator, ask(tenant=tenant, priority=priority))
    first, second, third = engine.seen
    assert first.cache_salt == third.cache_salt != second.cache_salt
    assert [first.priority, second.priority, third.priority] == [0, 10, 20]


async def test_the_turn_end_stops_the_engine_whatever_the_checkpoint_says(start: Start) -> None:
    engine = LetterEngine()
    await collect(await start(engine), ask())
    assert engine.seen[0].stop_token_ids == (2, 0)


async def test_metrics_count_tokens_reasons_and_first_tokens(start: Start) -> None:
    generator = await start(LetterEngine())
    await collect(generator, ask(5))
    await collect(generator, ask(100_000, deadline_s=0.05))
    text = await generator.metrics_text()
    assert 'graft_generator_requests_total{finish_reason="length"} 1.0' in text
    assert 'graft_generator_requests_total{finish_reason="deadline"} 1.0' in text
    assert "graft_generator_ttft_seconds_count 2.0" in text
    assert "graft_generator_inter_token_seconds_count 2.0" in text
    assert "graft_generator_running 0.0" in text


async def test_metrics_tell_what_the_chunk_store_holds_and_did(start: Start) -> None:
    stored = StoreStats(memory_chunks=3, memory_bytes=99, disk_chunks=2, disk_hits=5, misses=7, corrupt=1)
    generator = await start(LetterEngine(no_blend_reason=None, stored=stored))
    text = await generator.metrics_text()
    for line in (
        'graft_chunk_kv_chunks{tier="memory"} 3.0',
        'graft_chunk_kv_bytes{tier="memory"} 99.0',
        'graft_chunk_kv_reads_total{tier="disk"} 5.0',
        'graft_chunk_kv_reads_total{tier="none"} 7.0',
        'graft_chunk_kv_lost_total{why="corrupt"} 1.0',
    ):
        assert line in text
    await generator.stop()
    assert "graft_chunk_kv" not in await generator.metrics_text()
    assert "graft_chunk_kv" not in await (await start(LetterEngine())).metrics_text()


async def test_a_reader_whose_loop_is_gone_frees_its_slot(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)

    chunks = generator.generate(ask(1_000_000))

    def read_and_close_the_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(anext(chunks))
        loop.close()

    await asyncio.to_thread(read_and_close_the_loop)
    for _ in range(100):
        if engine.aborted:
            break
        await asyncio.sleep(0.02)
    assert len(engine.aborted) == 1


async def test_a_blend_request_is_served_exactly_where_the_engine_keeps_no_chunks(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    prompt = Prompt((Segment("passage", "write", chunk_id="a"),))
    chunks = await collect(generator, GenerateRequest(prompt, Sampling(max_tokens=2), reuse=KVReuse("blend")))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.mode == "exact"
    assert [request.blend for request in engine.seen] == [None]
    assert (await generator.stats()).no_blend_reason == "serving.chunk_kv_bytes is 0"


async def test_work_that_the_engine_refuses_is_given_up_and_the_next_is_done(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    driver = generator._driver
    assert driver is not None
    await collect(generator, ask(1))
    idle = IdleWork(driver)
    for number, stop in enumerate([("refuse me",), ()]):
        sampling = Sampling(max_tokens=2, stop=stop)
        request = replace(engine.seen[0], request_id=f"job {number}", sampling=sampling)
        idle.add(f"job {number}", partial(run_to_end, driver, request))
    await idle.wait()
    assert idle.num_done == 1


async def test_stopped_idle_work_leaves_nothing_in_the_engine(start: Start) -> None:
    engine = LetterEngine(step_s=0.01)
    generator = await start(engine)
    driver = generator._driver
    assert driver is not None
    await collect(generator, ask(1))
    idle = IdleWork(driver)
    request = replace(engine.seen[0], request_id="long", sampling=Sampling(max_tokens=2000))
    idle.add("long", partial(run_to_end, driver, request))
    await until(lambda: len(engine.seen) == 2)
    await idle.stop()
    await until(lambda: not engine.busy())
    assert engine.aborted == ["long"]


async def test_reordered_passages_begin_as_earlier_prompts_and_the_order_is_told(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    given, reuse = ["a b c", "d c b a"], KVReuse("reorder")
    orders, usages = [], []
    for ids in given:
        passages = [PromptPassage(one, one, f"text of {one}") for one in ids.split()]
        chunks = await collect(
            generator, GenerateRequest(rag_prompt("why?", passages), Sampling(max_tokens=2), reuse=reuse)
        )
        assert all(not chunk.chunk_order for chunk in chunks[:-1])
        orders.append(" ".join(chunks[-1].chunk_order))
        assert chunks[-1].usage is not None
        usages.append(chunks[-1].usage.mode)
    assert orders == ["a b c", "a b c d"]
    assert usages == ["exact", "reorder"]
    wanted = [PromptPassage(one, one, f"text of {one}") for one in orders[1].split()]
    assert len(engine.seen[1].token_ids) == await generator.count_tokens(rag_prompt("why?", wanted))
    (exact,) = await collect(generator, GenerateRequest(rag_prompt("why?", wanted), Sampling(max_tokens=1)))
    assert engine.seen[2].token_ids == engine.seen[1].token_ids
    assert exact.chunk_order == ()
