"""Weights of a generator replaced while it serves: over a scripted engine, and over the real one."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from letter_engine import LetterEngine, build, until
from safetensors.torch import load_file, save_file
from tiny_adapter import write_adapter
from tiny_model import build_tiny_model

from serving import (
    ActorGenerator,
    GeneratedChunk,
    GenerateRequest,
    GeneratorUnavailable,
    InvalidAdapter,
    LocalGenerator,
    ModelUnusable,
    Sampling,
    ServingConfig,
    Turn,
    chat_prompt,
)
from serving.inproc_driver import InprocDriver
from serving.weights import BUNDLED_FOLDER, model_hash

LONG = Sampling(max_tokens=400, temperature=2.0, seed=5)
TEXT = "A question longer than two blocks of the cache. " * 6

Host = Any
"""A generator whose weights can be updated."""


@dataclass
class Served:
    """A generator and the folder of its weights."""

    host: Host
    folder: Path
    engine: LetterEngine = field(default_factory=LetterEngine)


@pytest.fixture(params=["scripted", pytest.param("engine", marks=pytest.mark.integration)])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    if request.param == "engine":
        host: Host = request.getfixturevalue("spare_engine")
        yield Served(host, BUNDLED_FOLDER)
        await host.update_weights(BUNDLED_FOLDER)
        return
    engine, folder = LetterEngine(), build_tiny_model(tmp_path / "model")
    config = ServingConfig(model=str(folder), max_adapters=1)
    local = LocalGenerator(config, InprocDriver(config, str(folder), build=build(engine)))
    await local.start()
    yield Served(local, folder, engine)
    await local.stop()


def changed(folder: Path, to: Path, seed: int) -> Path:
    """Copy a model with other weights."""
    shutil.copytree(folder, to)
    for path in to.glob("*.safetensors"):
        luck = torch.Generator().manual_seed(seed)
        tensors = load_file(path)
        for name in sorted(tensors):
            if "norm" not in name and "embed" not in name:
                noise = 0.02 * torch.randn(tensors[name].shape, generator=luck)
                tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)
        save_file(tensors, path)
    return to


def ask(sampling: Sampling | None = None, **fields: Any) -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", TEXT)]), sampling or Sampling(12), **fields)


async def collect(host: Host, request: GenerateRequest) -> list[GeneratedChunk]:
    return [chunk async for chunk in host.generate(request)]


async def paused(host: Host) -> None:
    """Return once an update holds back new requests, or a second later where that cannot be seen."""
    async with asyncio.timeout(10):
        while isinstance(host, LocalGenerator) and not host._queue._is_paused:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    if not isinstance(host, LocalGenerator):
        await asyncio.sleep(1.0)


async def test_outputs_say_the_weights_and_no_kv_of_the_old_ones_is_used(
    served: Served, tmp_path: Path
) -> None:
    host, new = served.host, changed(served.folder, tmp_path / "new", 1)
    before = [await collect(host, ask()) for _ in range(2)][-1]
    info = await host.update_weights(new)
    assert info == await host.info()
    assert info.model_hash == model_hash(new) != before[-1].weights == model_hash(served.folder)
    after = await collect(host, ask())
    assert after[-1].weights == info.model_hash
    assert after[-1].usage is not None
    assert after[-1].usage.cached_tokens == 0
    back = await host.update_weights(served.folder)
    again = await collect(host, ask())
    assert again[-1].weights == back.model_hash == before[-1].weights
    assert [t for c in again for t in c.token_ids] == [t for c in before for t in c.token_ids]


async def test_who_has_begun_ends_with_the_old_weights_and_who_waits_gets_the_new(
    served: Served, tmp_path: Path
) -> None:
    host, new = served.host, changed(served.folder, tmp_path / "new", 2)
    old_hash = (await host.info()).model_hash
    async with aclosing(host.generate(ask(LONG))) as begun:
        await anext(begun)
        updating = asyncio.create_task(host.update_weights(new))
        await paused(host)
        waiting = [asyncio.create_task(collect(host, ask(Sampling(3)))) for _ in range(5)]
        last = [chunk async for chunk in begun][-1]
    assert last.finish_reason in ("stop", "length")
    assert last.weights == old_hash
    info = await updating
    for chunks in await asyncio.gather(*waiting):
        # Of an actor it cannot be seen whether the pause had begun.
        assert chunks[-1].weights in (info.model_hash, old_hash if isinstance(host, ActorGenerator) else None)
        assert chunks[-1].finish_reason in ("stop", "length")
    assert (await collect(host, ask(Sampling(1))))[-1].weights == info.model_hash


async def test_adapters_are_not_served_with_weights_they_were_not_made_for(
    served: Served, tmp_path: Path
) -> None:
    info = await served.host.load_adapter("a", write_adapter(tmp_path / "a", 1, model=served.folder))
    with pytest.raises(InvalidAdapter, match=rf"unload the adapters first.*{info.adapter_id}"):
        await served.host.update_weights(changed(served.folder, tmp_path / "new", 1))
    await served.host.unload_adapter(info.adapter_id)


async def test_no_adapter_slips_in_while_weights_change(tmp_path: Path) -> None:
    engine, folder = LetterEngine(step_s=0.005), build_tiny_model(tmp_path / "model")
    config = ServingConfig(model=str(folder), max_adapters=1)
    host = LocalGenerator(config, InprocDriver(config, str(folder), build=build(engine)))
    await host.start()
    begun = asyncio.create_task(collect(host, ask(Sampling(100))))
    await until(lambda: bool(engine.seen))
    updating = asyncio.create_task(host.update_weights(changed(folder, tmp_path / "new", 1)))
    await paused(host)
    loading = asyncio.create_task(host.load_adapter("a", write_adapter(tmp_path / "a", 1, model=folder)))
    await updating
    assert begun.done()
    assert not engine.adapters, "it is loaded only after the weights have changed"
    await loading
    assert len(engine.adapters) == 1
    await host.stop()


def broken(folder: Path, what: str) -> Path:
    """Break a copy of a model."""
    path = next(iter(folder.glob("*.safetensors")))
    if what == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "no weights":
        path.unlink()
    elif what == "garbage":
        path.write_bytes(b"no weights at all")
    elif what == "shape":
        tensors = load_file(path)
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
        save_file(tensors, path)
    elif what == "tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    elif what == "settings":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("torn", "is no whole weight file"),
        ("garbage", "is no whole weight file"),
        ("no weights", r"no \*\.safetensors"),
        ("shape", r"1 tensors in .* \(model\.norm\.weight \["),
        ("tokenizer", "another tokenizer"),
        ("settings", r"rope_theta=5\.0"),
    ],
)
async def test_weights_of_no_use_are_refused_and_the_old_ones_serve_on(
    served: Served, tmp_path: Path, what: str, said: str
) -> None:
    before = await served.host.info()
    with pytest.raises(ModelUnusable, match=said):
        await served.host.update_weights(broken(changed(served.folder, tmp_path / "new", 1), what))
    with pytest.raises(ModelUnusable, match="does not exist"):
        await served.host.update_weights(tmp_path / "nowhere")
    assert await served.host.info() == before
    assert (await collect(served.host, ask()))[-1].weights == before.model_hash


async def test_a_load_that_fails_half_way_brings_the_old_weights_back(tmp_path: Path) -> None:
    engine, folder = LetterEngine(), build_tiny_model(tmp_path / "model")
    config = ServingConfig(model=str(folder))
    host = LocalGenerator(config, InprocDriver(config, str(folder), build=build(engine)))
    await host.start()
    new = changed(folder, tmp_path / "new", 1)
    engine.weight_failures = [ModelUnusable("out of memory")]
    with pytest.raises(ModelUnusable, match="out of memory"):
        await host.update_weights(new)
    assert engine.weights == [str(new), str(folder)]
    assert (await collect(host, ask(Sampling(2))))[-1].weights == model_hash(folder)
    engine.weight_failures = [ModelUnusable("out of memory"), ModelUnusable("still so")]
    with pytest.raises(GeneratorUnavailable, match="without weights"):
        await host.update_weights(new)
    assert host.health().status == "failed"
    with pytest.raises(GeneratorUnavailable, match="without weights"):
        await collect(host, ask())
    await host.stop()


@pytest.mark.integration
async def test_the_engine_writes_what_transformers_does_with_the_new_weights(
    spare_engine: ActorGenerator, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    new = changed(BUNDLED_FOLDER, tmp_path / "new", 3)
    await spare_engine.update_weights(new)
    request = ask(Sampling(16))
    ours = [token for chunk in await collect(spare_engine, request) for token in chunk.token_ids]
    model = AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(new)(request.prompt.text, add_special_tokens=False).input_ids
    written = model.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=[2, 0], pad_token_id=0
    )
    await spare_engine.update_weights(BUNDLED_FOLDER)
    assert ours == written[0, len(ids) :].tolist()
