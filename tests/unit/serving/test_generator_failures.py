"""Engines that die, readers that sleep, prompts that do not fit: over a driver thread with scripted letters.

After each of them everything that a request takes is counted.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from held import DEAD, Held, held
from letter_engine import LetterEngine, Start, ask, collect, until
from safetensors.numpy import load_file, save_file
from tiny_adapter import write_adapter

from serving.errors import GeneratorUnavailable, PromptTooLong
from serving.prompt import PromptPassage, rag_prompt
from serving.types import GenerateRequest, KVReuse, Prompt, Sampling, Segment


async def test_an_engine_that_dies_under_load_leaves_no_place_and_no_use(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    engine = LetterEngine(step_s=0.002)
    generator = await start(engine, max_num_seqs=4, max_adapters=1)
    info = await generator.load_adapter("a", write_adapter(tmp_path, 1, model=folder))
    begun = 0

    async def run(number: int) -> str:
        nonlocal begun
        text = ""
        async for chunk in generator.generate(ask(5000, adapter=info.adapter_id if number % 2 else None)):
            begun += not text
            text += chunk.text
        return text

    tasks = [asyncio.create_task(run(number)) for number in range(12)]
    await until(lambda: begun == 4 and held(generator).tenants_waiting == 8)
    assert held(generator).adapter_uses == 6
    engine.breaks_at_step = engine.num_steps + 5
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == 4, "those that waited never reached the engine"
    for result in results:
        assert isinstance(result, GeneratorUnavailable)
        assert "out of ink" in str(result)
    assert held(generator) == DEAD
    async with asyncio.timeout(10):
        await generator.unload_adapter(info.adapter_id)
    assert not await generator.adapters()


async def test_a_reader_that_sleeps_keeps_no_slot_and_gets_all_of_its_text(start: Start) -> None:
    generator = await start(LetterEngine(), max_num_seqs=1)
    async with aclosing(generator.generate(ask(300))) as asleep:
        first = await anext(asleep)
        async with asyncio.timeout(10):
            for _ in range(3):
                assert (await collect(generator, ask(5)))[-1].finish_reason == "length"
        assert held(generator) == Held(request_ids=1)
        rest = await anext(asleep)
        assert first.text + rest.text == "a" * 300
        assert rest.finish_reason == "length"
    assert held(generator) == Held()


async def test_what_is_written_is_charged_though_nobody_reads(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    request = ask(50, tenant="asleep")
    async with aclosing(generator.generate(request)) as asleep:
        await anext(asleep)
        await until(lambda: not engine.busy() and not held(generator).places)
        num_tokens = await generator.count_tokens(request.prompt)
        assert generator._queue._tenants["asleep"].served == num_tokens + 2 * 50


async def test_a_deadline_stops_the_engine_also_where_nobody_reads(start: Start) -> None:
    engine = LetterEngine()
    generator = await start(engine)
    async with aclosing(generator.generate(ask(1500, deadline_s=0.2))) as asleep:
        begun = await anext(asleep)
        await until(lambda: bool(engine.aborted))
        await until(lambda: not held(generator).places)
        rest = [chunk async for chunk in asleep]
    assert rest[-1].finish_reason == "deadline"
    assert rest[-1].usage is not None
    num_tokens = len(begun.token_ids) + sum(len(chunk.token_ids) for chunk in rest)
    assert rest[-1].usage.completion_tokens == num_tokens < 1500


async def test_a_request_whose_deadline_passed_in_the_queue_keeps_no_place_though_nobody_reads(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    engine = LetterEngine(sticks=True)
    generator = await start(engine, max_num_seqs=1, max_adapters=1)
    info = await generator.load_adapter("a", write_adapter(tmp_path, 1, model=folder))
    first = asyncio.create_task(collect(generator, ask(2)))
    await until(lambda: bool(engine.seen))
    async with aclosing(generator.generate(ask(deadline_s=0.05, adapter=info.adapter_id))) as asleep:
        assert (await anext(asleep)).finish_reason == "deadline"
        found = held(generator)
        assert (found.places, found.tenants_waiting, found.adapter_uses) == (1, 0, 0)
    engine.stuck.set()
    await first
    assert held(generator) == Held()


async def test_a_reader_that_sleeps_keeps_no_adapter(start: Start, folder: Path, tmp_path: Path) -> None:
    engine = LetterEngine()
    generator = await start(engine, max_adapters=1)
    info = await generator.load_adapter("a", write_adapter(tmp_path, 1, model=folder))
    async with aclosing(generator.generate(ask(100, adapter=info.adapter_id))) as asleep:
        await anext(asleep)
        async with asyncio.timeout(10):
            await generator.unload_adapter(info.adapter_id)
        assert not engine.adapters
        last = [chunk async for chunk in asleep][-1]
    assert str(last.weights).endswith(info.adapter_id)
    assert held(generator) == Held()


async def test_nothing_is_computed_for_chunks_of_weights_that_a_sleeping_reader_outlasted(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in other.glob("*.safetensors"):
        save_file({name: tensor + np.float32(1) for name, tensor in load_file(path).items()}, path)
    engine = LetterEngine(no_blend_reason=None)
    generator = await start(engine)
    prompt = Prompt((Segment("system", "say"), Segment("passage", "write", chunk_id="a")))
    request = GenerateRequest(prompt, Sampling(max_tokens=100), reuse=KVReuse("blend"))
    async with aclosing(generator.generate(request)) as asleep:
        await anext(asleep)
        async with asyncio.timeout(10):
            await generator.update_weights(other)
        assert [chunk async for chunk in asleep][-1].finish_reason == "length"
    await generator.idle_work_done()
    assert len(engine.seen) == 1, "its chunks would be captured under the key of weights that are gone"
    await collect(generator, request)
    await generator.idle_work_done()
    assert len(engine.seen) == 3, "those of the weights there are, are captured"


@pytest.mark.parametrize("mode", ["exact", "reorder", "blend"])
@pytest.mark.parametrize("with_adapter", [False, True])
async def test_a_prompt_that_does_not_fit_leaves_nothing_behind(
    start: Start, folder: Path, tmp_path: Path, mode: str, with_adapter: bool
) -> None:
    engine = LetterEngine(no_blend_reason=None)
    generator = await start(engine, max_model_len=256, max_adapters=1)
    info = await generator.load_adapter("a", write_adapter(tmp_path, 1, model=folder))
    passages = [PromptPassage(f"{number}", "title", "many words " * 30) for number in range(5)]
    request = GenerateRequest(
        rag_prompt("why?", passages),
        request_id="mine",
        reuse=KVReuse(mode),  # type: ignore[arg-type]
        adapter=info.adapter_id if with_adapter else None,
    )
    num_tokens = await generator.count_tokens(request.prompt)
    for _ in range(2):
        with pytest.raises(PromptTooLong, match=f"has {num_tokens} tokens and the context window 256 "):
            await collect(generator, request)
    assert held(generator) == Held()
    assert not engine.seen
    stats = await generator.stats()
    assert (stats.prompt_tokens, stats.num_cancelled, stats.num_finished) == (0, 0, 0)
    await generator.unload_adapter(info.adapter_id)


async def test_a_prompt_that_was_refused_orders_no_other(start: Start) -> None:
    generator = await start(LetterEngine(), max_model_len=256)
    reuse = KVReuse("reorder")
    texts = {"a": "short", "b": "short too", "long": "many words " * 200}
    passages = {name: PromptPassage(name, name, text) for name, text in texts.items()}
    refused = rag_prompt("why?", [passages["b"], passages["a"], passages["long"]])
    with pytest.raises(PromptTooLong):
        await collect(generator, GenerateRequest(refused, reuse=reuse))
    prompt = rag_prompt("why?", [passages["a"], passages["b"]])
    last = (await collect(generator, GenerateRequest(prompt, Sampling(max_tokens=1), reuse=reuse)))[-1]
    assert last.chunk_order == ("a", "b"), "the engine holds no KV of a prompt that it never saw"
