"""Who waits for the engine and who makes way, over a driver thread with an engine that writes letters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from letter_engine import LetterEngine, Start, ask, collect, until

from serving.chunk_kv.idle_work import IdleWork, run_to_end
from serving.errors import GeneratorUnavailable
from serving.types import Sampling


async def test_metrics_tell_service_between_tenants_that_wait(start: Start) -> None:
    engine = LetterEngine(sticks=True)
    generator = await start(engine, max_num_seqs=1)
    tasks = [asyncio.create_task(collect(generator, ask(1, tenant="hold")))]
    await until(lambda: bool(engine.seen))
    generator._queue._tenants["hold"].served = 5.0
    for tenant in ("hold", "other"):
        tasks.append(asyncio.create_task(collect(generator, ask(1, tenant=tenant))))
    await until(lambda: len(generator._queue._next_of_each()) == 2)
    text = await generator.metrics_text()
    assert "graft_generator_fairness_gap_tokens 0.0" in text  # who comes back starts level
    assert "graft_generator_waiting 2.0" in text
    generator._queue._tenants["other"].served += 30
    assert "graft_generator_fairness_gap_tokens 30.0" in await generator.metrics_text()
    engine.stuck.set()
    await asyncio.gather(*tasks)
    assert "graft_generator_queue_seconds_count 3.0" in await generator.metrics_text()


async def test_slots_of_readers_whose_loop_is_gone_go_to_the_next(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine, max_num_seqs=1)
    chunks = generator.generate(ask(1_000_000))

    def read_and_close_the_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(anext(chunks))
        loop.close()

    await asyncio.to_thread(read_and_close_the_loop)
    async with asyncio.timeout(10):
        assert (await collect(generator, ask(2)))[-1].finish_reason == "length"


@pytest.mark.parametrize("scheduling", ["fair", "first_come"])
async def test_a_flood_of_one_tenant_holds_up_another_only_where_asked_for(
    start: Start, scheduling: str
) -> None:
    generator = await start(LetterEngine(max_num_seqs=2), max_num_seqs=2, scheduling=scheduling)
    ended: list[str] = []

    async def run(tenant: str) -> None:
        await collect(generator, ask(20, tenant=tenant))
        ended.append(tenant)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(run("flood"))
        await asyncio.sleep(0.01)
        tasks.create_task(run("light"))
    assert len(ended) == 17
    place = ended.index("light")
    assert place <= 4 if scheduling == "fair" else place >= 14


async def test_a_request_whose_deadline_passes_while_it_waits_never_reaches_the_engine(start: Start) -> None:
    engine = LetterEngine(sticks=True)
    generator = await start(engine, max_num_seqs=1)
    first = asyncio.create_task(collect(generator, ask(2)))
    await until(lambda: bool(engine.seen))
    chunks = await collect(generator, ask(deadline_s=0.05))
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "deadline")]
    assert chunks[0].usage is not None
    assert chunks[0].usage.prompt_tokens > 0
    engine.stuck.set()
    await first
    assert len(engine.seen) == 1
    stats = await generator.stats()
    assert (stats.num_cancelled, stats.num_finished, stats.num_waiting) == (1, 1, 0)


async def test_stopping_fails_those_that_wait_for_a_slot(start: Start) -> None:
    engine = LetterEngine(step_s=0.005)
    generator = await start(engine, max_num_seqs=1)
    running = [asyncio.create_task(collect(generator, ask(100_000))) for _ in range(3)]
    await until(lambda: bool(engine.seen))
    assert (await generator.stats()).num_waiting == 2
    await generator.stop()
    for task in running:
        with pytest.raises(GeneratorUnavailable, match="stopping"):
            await task
    assert len(engine.seen) == 1


async def test_calls_of_an_older_run_go_before_newer_ones(start: Start) -> None:
    engine = LetterEngine(step_s=0.005)
    generator = await start(engine, max_num_seqs=1)
    tasks = [asyncio.create_task(collect(generator, ask(20)))]
    await until(lambda: bool(engine.seen))
    for max_tokens, began_s in ((1, 300.0), (2, 200.0), (3, 100.0)):
        tasks.append(asyncio.create_task(collect(generator, ask(max_tokens, run_began_s=began_s))))
    await asyncio.gather(*tasks)
    assert [request.sampling.max_tokens for request in engine.seen] == [20, 3, 2, 1]


async def test_work_for_idle_times_waits_until_no_request_runs(start: Start) -> None:
    engine = LetterEngine(step_s=0.005)
    generator = await start(engine)
    driver = generator._driver
    assert driver is not None
    idle = IdleWork(driver)
    running = asyncio.create_task(collect(generator, ask(60)))
    await until(lambda: bool(engine.seen))
    request = replace(engine.seen[0], request_id="background", sampling=Sampling(max_tokens=3))
    idle.add("first", partial(run_to_end, driver, request))
    await idle.wait()
    assert running.done(), "the request that was waited for ends first"
    assert idle.num_done == 1
    assert [one.request_id for one in engine.seen][1:] == ["background"]


async def test_work_for_idle_times_makes_way_for_a_request_and_is_done_after_it(start: Start) -> None:
    engine = LetterEngine(step_s=0.005, no_blend_reason=None)
    generator = await start(engine)
    driver = generator._driver
    assert driver is not None
    await collect(generator, ask(1))
    assert generator._blending is not None
    request = replace(engine.seen[0], request_id="background", sampling=Sampling(max_tokens=100))
    generator._blending._idle.add("job", partial(run_to_end, driver, request))
    await until(lambda: len(engine.seen) == 2)
    chunks = await collect(generator, ask(3))
    assert "".join(chunk.text for chunk in chunks) == "aaa"
    assert engine.aborted == ["background"]
    await generator.idle_work_done()
    assert generator._blending._idle.num_done == 1
    assert [one.request_id for one in engine.seen].count("background") == 2


async def test_idle_work_that_made_way_can_still_be_stopped(start: Start) -> None:
    engine = LetterEngine(step_s=0.005)
    generator = await start(engine)
    driver = generator._driver
    assert driver is not None
    await collect(generator, ask(1))
    idle = IdleWork(driver)
    request = replace(engine.seen[0], request_id="job", sampling=Sampling(max_tokens=1000))
    idle.add("job", partial(run_to_end, driver, request))
    await until(lambda: len(engine.seen) == 2)
    idle.make_way()
    idle.make_way()
    await until(lambda: len(engine.seen) == 3)
    async with asyncio.timeout(5):
        await idle.stop()
    await until(lambda: not engine.busy())
    assert engine.aborted == ["job", "job"]
    assert idle.num_done == 0
