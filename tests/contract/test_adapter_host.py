"""LoRA adapters of a generator: over a scripted engine, and over the real one behind its actor."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from letter_engine import LetterEngine, build
from tiny_adapter import write_adapter

from serving import (
    ActorGenerator,
    AdapterInfo,
    GeneratedChunk,
    GenerateRequest,
    InvalidAdapter,
    LocalGenerator,
    PromptTooLong,
    Sampling,
    ServingConfig,
    Turn,
    UnknownAdapter,
    chat_prompt,
)
from serving.inproc_driver import InprocDriver
from serving.weights import BUNDLED_FOLDER

MAX_ADAPTERS = 3
"""Of the spare engine too."""
LONG = Sampling(max_tokens=200, temperature=2.0, seed=5)

Host = Any
"""A `Generator` and an `AdapterHost`."""


@pytest.fixture(params=["scripted", pytest.param("engine", marks=pytest.mark.integration)])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    if request.param == "engine":
        found: Host = request.getfixturevalue("spare_engine")
        yield found
        for info in await found.adapters():
            with suppress(UnknownAdapter):
                await found.unload_adapter(info.adapter_id)
        return
    config = ServingConfig(max_adapters=MAX_ADAPTERS)
    engine = LetterEngine(max_num_seqs=64)
    local = LocalGenerator(config, InprocDriver(config, str(BUNDLED_FOLDER), build=build(engine)))
    await local.start()
    yield local
    await local.stop()


def ask(adapter: str | None, sampling: Sampling | None = None, text: str = "Why blocks?") -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", text)]), sampling or Sampling(12), adapter=adapter)


async def collect(host: Host, request: GenerateRequest) -> list[GeneratedChunk]:
    return [chunk async for chunk in host.generate(request)]


async def tokens(host: Host, request: GenerateRequest) -> list[int]:
    return [token for chunk in await collect(host, request) for token in chunk.token_ids]


async def test_an_id_says_name_and_files_and_the_output_says_the_id(host: Host, tmp_path: Path) -> None:
    first = await host.load_adapter("legal/v1", write_adapter(tmp_path / "a", 1))
    assert first.adapter_id.startswith("legal/v1@")
    assert (first.name, first.rank, first.num_requests, first.is_leaving) == ("legal/v1", 8, 0, False)
    assert await host.load_adapter("legal/v1", write_adapter(tmp_path / "same", 1)) == first
    second = await host.load_adapter("legal/v1", write_adapter(tmp_path / "b", 2))
    assert second.adapter_id != first.adapter_id
    assert await host.adapters() == [first, second]
    plain, adapted = await collect(host, ask(None)), await collect(host, ask(first.adapter_id))
    model_hash = (await host.info()).model_hash
    assert plain[-1].weights == model_hash
    assert adapted[-1].weights == f"{model_hash}+{first.adapter_id}"
    assert all(chunk.weights is None for chunk in adapted[:-1])


async def test_an_adapter_that_is_not_loaded_is_named_with_those_that_are(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UnknownAdapter, match="'nobody' is not loaded; loaded are: none"):
        await collect(host, ask("nobody"))
    info = await host.load_adapter("a", write_adapter(tmp_path, 1))
    with pytest.raises(UnknownAdapter, match=info.adapter_id):
        await collect(host, ask("nobody"))
    with pytest.raises(UnknownAdapter, match="nobody"):
        await host.unload_adapter("nobody")


async def test_one_that_is_unloaded_serves_who_uses_it_and_nobody_else(host: Host, tmp_path: Path) -> None:
    info: AdapterInfo = await host.load_adapter("a", write_adapter(tmp_path, 1))
    async with aclosing(host.generate(ask(info.adapter_id, LONG))) as chunks:
        await anext(chunks)
        leaving = asyncio.create_task(host.unload_adapter(info.adapter_id))
        async with asyncio.timeout(10):
            while not (await host.adapters())[0].is_leaving:  # noqa: ASYNC110 - it has no event to wait for
                await asyncio.sleep(0.01)
        with pytest.raises(UnknownAdapter, match="loaded are: none"):
            await collect(host, ask(info.adapter_id))
        with pytest.raises(InvalidAdapter, match="being unloaded"):
            await host.load_adapter("a", tmp_path)
        assert not leaving.done()
        last = [chunk async for chunk in chunks][-1]
    assert last.finish_reason in ("stop", "length")
    await leaving
    assert await host.adapters() == []
    again = await host.load_adapter("a", tmp_path)
    assert again.adapter_id == info.adapter_id


@asynccontextmanager
async def full_slots(host: Host) -> AsyncIterator[None]:
    """Keep every slot of the engine taken, so that requests of the same tenant wait, until the block ends."""
    endless = Sampling(max_tokens=1500, temperature=2.0, seed=5)
    requests = [ask(None, endless, f"{number}") for number in range(ServingConfig().max_num_seqs + 4)]
    tasks = [asyncio.create_task(collect(host, request)) for request in requests]
    try:
        await waiting(host, 4)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def waiting(host: Host, num_requests: int) -> None:
    """Return once so many requests wait for a slot."""
    async with asyncio.timeout(60):
        while (await host.stats()).num_waiting < num_requests:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def given_back(host: Host) -> None:
    """Return once no slot, no place, no KV block and no adapter is held by anybody."""
    async with asyncio.timeout(60):
        while True:
            stats, infos = await host.stats(), await host.adapters()
            if not any((stats.num_running, stats.num_waiting, stats.kv_usage)):
                break
            await asyncio.sleep(0.01)
    assert stats.kv_usage == 0.0
    assert [info.num_requests for info in infos] == [0] * len(infos)


async def test_a_request_that_waits_is_answered_by_an_adapter_whose_folder_goes(
    host: Host, tmp_path: Path
) -> None:
    info = await host.load_adapter("a", write_adapter(tmp_path / "gone", 1))
    expected = await tokens(host, ask(info.adapter_id))
    async with full_slots(host):
        asked = asyncio.create_task(collect(host, ask(info.adapter_id)))
        await waiting(host, 5)
        shutil.rmtree(tmp_path / "gone")
        assert not asked.done()
    async with asyncio.timeout(60):
        chunks = await asked
    assert [token for chunk in chunks for token in chunk.token_ids] == expected
    assert chunks[-1].weights == f"{(await host.info()).model_hash}+{info.adapter_id}"
    await given_back(host)


async def test_requests_that_wait_are_answered_by_an_adapter_that_is_unloaded(
    host: Host, tmp_path: Path
) -> None:
    info = await host.load_adapter("a", write_adapter(tmp_path, 1))
    expected = await tokens(host, ask(info.adapter_id))
    async with full_slots(host):
        asked = [asyncio.create_task(collect(host, ask(info.adapter_id))) for _ in range(3)]
        left = asyncio.create_task(collect(host, ask(info.adapter_id)))
        await waiting(host, 8)
        leaving = asyncio.create_task(host.unload_adapter(info.adapter_id))
        async with asyncio.timeout(10):
            while not (await host.adapters())[0].is_leaving:  # noqa: ASYNC110 - it has no event to wait for
                await asyncio.sleep(0.01)
        with pytest.raises(UnknownAdapter, match="loaded are: none"):
            await collect(host, ask(info.adapter_id))
        left.cancel()
        assert not any(one.done() for one in (*asked, leaving))
    async with asyncio.timeout(60):
        for chunks in await asyncio.gather(*asked):
            assert [token for chunk in chunks for token in chunk.token_ids] == expected
            assert str(chunks[-1].weights).endswith(info.adapter_id)
        await leaving
    assert await host.adapters() == []
    await given_back(host)


async def test_a_prompt_too_long_for_the_window_lets_its_adapter_go(host: Host, tmp_path: Path) -> None:
    info = await host.load_adapter("a", write_adapter(tmp_path, 1))
    request = ask(info.adapter_id, text="word " * 3000)
    num_tokens = await host.count_tokens(request.prompt)
    with pytest.raises(PromptTooLong, match=f"has {num_tokens} tokens and the context window 2048 "):
        await collect(host, request)
    await given_back(host)


async def test_a_cancelled_request_lets_its_adapter_go(host: Host, tmp_path: Path) -> None:
    info = await host.load_adapter("a", write_adapter(tmp_path, 1))
    async with aclosing(host.generate(ask(info.adapter_id, LONG))) as chunks:
        await anext(chunks)
        assert (await host.adapters())[0].num_requests == 1
    async with asyncio.timeout(10):
        await host.unload_adapter(info.adapter_id)


async def test_an_unload_that_is_given_up_keeps_the_adapter(tmp_path: Path) -> None:
    engine, config = LetterEngine(step_s=0.005), ServingConfig(max_adapters=1)
    local = LocalGenerator(config, InprocDriver(config, str(BUNDLED_FOLDER), build=build(engine)))
    await local.start()
    info = await local.load_adapter("a", write_adapter(tmp_path, 1))
    async with aclosing(local.generate(ask(info.adapter_id, LONG))) as chunks:
        await anext(chunks)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await local.unload_adapter(info.adapter_id)
        assert not (await local.adapters())[0].is_leaving
    assert (await collect(local, ask(info.adapter_id)))[-1].finish_reason == "length"
    await local.unload_adapter(info.adapter_id)
    assert not engine.adapters
    await local.stop()


async def test_the_callers_folder_may_go(host: Host, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "gone", 1)
    info = await host.load_adapter("a", folder)
    before = await tokens(host, ask(info.adapter_id))
    shutil.rmtree(folder)
    assert await tokens(host, ask(info.adapter_id)) == before


async def test_no_more_are_loaded_than_may_be(host: Host, tmp_path: Path) -> None:
    infos = [
        await host.load_adapter(f"a{seed}", write_adapter(tmp_path / str(seed), seed))
        for seed in range(MAX_ADAPTERS)
    ]
    with pytest.raises(InvalidAdapter, match=rf"limit is {MAX_ADAPTERS} \(serving.max_adapters\): a0@"):
        await host.load_adapter("more", write_adapter(tmp_path / "more", 9))
    await host.unload_adapter(infos[1].adapter_id)
    await host.load_adapter("more", tmp_path / "more")
    assert [info.name for info in await host.adapters()] == ["a0", "a2", "more"]


async def test_requests_of_several_adapters_run_together(host: Host, tmp_path: Path) -> None:
    base = await tokens(host, ask(None))
    infos = [
        await host.load_adapter(f"a{seed}", write_adapter(tmp_path / str(seed), seed))
        for seed in range(MAX_ADAPTERS)
    ]
    assert await tokens(host, ask(None)) == base, "adapters that are loaded add nothing to the model alone"
    users = [None, *(info.adapter_id for info in infos)]
    alone = [await tokens(host, ask(user)) for user in users]
    together = await asyncio.gather(*(tokens(host, ask(user)) for user in users * 3))
    assert together == alone * 3


def broken(folder: Path, what: str) -> Path:
    """Write an adapter and break it."""
    write_adapter(folder, 1, rank=64 if what == "rank" else 8)
    config = folder / "adapter_config.json"
    if what == "weights":
        (folder / "adapter_model.safetensors").unlink()
    elif what == "config":
        config.unlink()
    elif what == "json":
        config.write_text("{no json")
    elif what == "kind":
        config.write_text(json.dumps({"peft_type": "IA3"}))
    elif what == "no rank":
        config.write_text(json.dumps({"peft_type": "LORA", "r": "many"}))
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("weights", "lacks adapter_model.safetensors"),
        ("config", "lacks adapter_config.json"),
        ("json", "does not describe a LoRA"),
        ("kind", "does not describe a LoRA"),
        ("no rank", "names no rank"),
        ("rank", r"rank 64, the limit is 16; raise serving.max_adapter_rank"),
    ],
)
async def test_files_that_cannot_be_used_are_named_and_nothing_is_loaded(
    host: Host, tmp_path: Path, what: str, said: str
) -> None:
    with pytest.raises(InvalidAdapter, match=said):
        await host.load_adapter("a", broken(tmp_path / "broken", what))
    assert await host.adapters() == []


@pytest.mark.parametrize("name", ["", "a@b", "../etc", "x" * 101, "a b"])
async def test_a_name_that_cannot_be_an_id_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidAdapter, match="must match"):
        await host.load_adapter(name, write_adapter(tmp_path, 1))


async def test_weights_of_another_model_are_refused_and_the_engine_goes_on(
    host: Host, tmp_path: Path
) -> None:
    before = await tokens(host, ask(None))
    torn = write_adapter(tmp_path / "torn", 1)
    (torn / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InvalidAdapter, match="no whole weight file"):
        await host.load_adapter("torn", torn)
    if (await host.info()).model_id == "graft-mini":
        with pytest.raises(
            InvalidAdapter, match=r"another model: .*q_proj.* \[8, 128\], and .* \[256, 256\]"
        ):
            await host.load_adapter("other", write_adapter(tmp_path / "other", 1, hidden_dim=128))
    assert await host.adapters() == []
    assert await tokens(host, ask(None)) == before


@pytest.mark.integration
async def test_what_vllm_refuses_is_the_callers_error(spare_engine: ActorGenerator, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "dora", 1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InvalidAdapter, match=r"vLLM cannot use dora@.*DoRA"):
        await spare_engine.load_adapter("dora", folder)
    assert await spare_engine.adapters() == []
    assert await tokens(spare_engine, ask(None))


@pytest.mark.integration
async def test_the_engine_writes_what_peft_does_and_shares_no_kv_with_the_model(
    spare_engine: ActorGenerator, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_folder, folder = BUNDLED_FOLDER, write_adapter(tmp_path, 3)
    text = "A question longer than two blocks of the cache. " * 6
    request = ask(None, Sampling(16), text)
    base = await tokens(spare_engine, request)
    info = await spare_engine.load_adapter("a", folder)
    chunks = await collect(spare_engine, ask(info.adapter_id, Sampling(16), text))
    ours = [token for chunk in chunks for token in chunk.token_ids]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.cached_tokens == 0
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    ids = AutoTokenizer.from_pretrained(model_folder)(request.prompt.text, add_special_tokens=False).input_ids
    written = adapted.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=[2, 0], pad_token_id=0
    )
    assert ours == written[0, len(ids) :].tolist()
    assert ours != base
    await spare_engine.unload_adapter(info.adapter_id)


async def test_a_generator_without_room_for_adapters_says_so(tmp_path: Path) -> None:
    config = ServingConfig()
    local = LocalGenerator(config, InprocDriver(config, str(BUNDLED_FOLDER), build=build(LetterEngine())))
    await local.start()
    with pytest.raises(InvalidAdapter, match=r"set serving\.max_adapters above 0"):
        await local.load_adapter("a", write_adapter(tmp_path / "a", 1))
    await local.stop()
