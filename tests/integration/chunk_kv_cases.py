"""Chunks' KV in the real engine: loaded anywhere, repaired, never mixed with what is exact.

One file, since all cases share one engine, which takes a process of its own and ten seconds to start.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from full_disk import full_disk
from held import DEAD, Held, held

from serving.chunk_kv.blend_plan import BlendPlan, ChunkSpan, ChunkUse, Repair
from serving.chunk_kv.chunk import ChunkKV
from serving.chunk_kv.chunk_store import ChunkStore
from serving.chunk_kv.kv_codec import decode_chunk, encode_chunk
from serving.chunk_kv.quality_gate import GateConfig
from serving.config import ServingConfig
from serving.driver import EngineOutput, EngineRequest, StartTimings
from serving.environment import engine_environment
from serving.errors import GeneratorUnavailable, PromptTooLong
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver
from serving.prompt import PromptPassage, rag_prompt
from serving.routing.prompt_path import prompt_path
from serving.routing.replica_view import ReplicaView
from serving.types import GenerateRequest, KVReuse, Sampling, TokenUsage
from serving.weights import model_folder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    # vLLM 0.32 and torch 2.13 while the engine is made in this process.
    pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op.*:FutureWarning"),
]

FRESH = itertools.count()
GENERATOR = torch.Generator().manual_seed(0)
EVERYTHING = Repair(first_k=10_000)
NOTHING = Repair(first_k=0)


def ids(num_tokens: int) -> list[int]:
    return torch.randint(100, 4000, (num_tokens,), generator=GENERATOR).tolist()


SYSTEM, QUESTION, GAP = ids(37), ids(21), ids(5)
CHUNKS = {name: ids(length) for name, length in (("a", 70), ("b", 95), ("c", 64))}


class Engine:
    """The real engine, one request at a time or several at once, and its store."""

    def __init__(self, config: ServingConfig) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        from serving.chunk_kv import connector
        from serving.vllm_engine import VllmEngine

        self.vllm = VllmEngine(config, str(model_folder(config.model)))
        self.config = config
        [self.shared] = connector._SHARED.values()
        self.store = self.shared.store
        self.connector = get_kv_transfer_group()
        """The worker's side."""
        scheduler = self.vllm._engine.engine_core.engine_core.scheduler
        self.promised = scheduler.connector._promised
        self.runner = (
            self.vllm._engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        )

    def run(self, *requests: EngineRequest) -> list[tuple[tuple[int, ...], EngineOutput]]:
        """Return each request's tokens and last output."""
        for request in requests:
            self.vllm.add(request)
        tokens: dict[str, tuple[int, ...]] = {request.request_id: () for request in requests}
        last: dict[str, EngineOutput] = {}
        while self.vllm.busy():
            for request_id, output in self.vllm.step():
                tokens[request_id] += output.token_ids
                last[request_id] = output
        return [(tokens[request.request_id], last[request.request_id]) for request in requests]

    @property
    def num_held_blocks(self) -> int:
        """Return the KV blocks that are not free, the null block apart."""
        pool = self.vllm._engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()

    def kv(self, key: str) -> ChunkKV:
        found = self.store.get(key)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        config = ServingConfig(
            chunk_kv_bytes=256 << 20,
            chunk_kv_disk_bytes=256 << 20,
            chunk_kv_folder=str(tmp_path_factory.mktemp("chunks")),
            chunk_kv_codec="fine",
            kv_cache_bytes=64 << 20,
        )
        for name, value in engine_environment(config).items():
            patch.setenv(name, value)
        engine = Engine(config)
        yield engine
        engine.vllm.close()


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    """After every case: no request, no promise, no KV block that is not free."""
    assert engine.num_held_blocks == 0
    yield
    assert not engine.vllm.busy()
    assert engine.num_held_blocks == 0
    assert not engine.shared.uses
    assert not engine.promised


def request(
    token_ids: list[int], plan: BlendPlan | None, salt: str = "", max_tokens: int = 8
) -> EngineRequest:
    number = next(FRESH)
    sampling = Sampling(max_tokens=max_tokens)
    return EngineRequest(f"r{number}", token_ids, sampling, salt or f"salt {number}", blend=plan)


def prompt(*names: str) -> tuple[list[int], tuple[ChunkSpan, ...]]:
    """Return a prompt with chunks in an order, and where they are."""
    token_ids, spans = list(SYSTEM), []
    for name in names:
        token_ids += GAP
        spans.append(ChunkSpan(len(token_ids), len(token_ids) + len(CHUNKS[name]), name))
        token_ids += CHUNKS[name]
    return token_ids + QUESTION, tuple(spans)


def capture_alone(engine: Engine, *names: str) -> None:
    """Put chunks into the store, each computed after the system turn alone."""
    for name in names:
        token_ids, [span] = prompt(name)
        engine.run(request(token_ids[: span.end], BlendPlan(capture=(span,)), max_tokens=1))
        assert engine.kv(name).num_tokens == len(CHUNKS[name])


def whole(token_ids: list[int], key: str) -> ChunkSpan:
    return ChunkSpan(0, len(token_ids), key)


@pytest.mark.parametrize("repair", [EVERYTHING, Repair(first_k=0, share=1.0)])
def test_everything_repaired_is_the_exact_prefill(engine: Engine, repair: Repair):
    capture_alone(engine, "a", "b", "c")
    token_ids, spans = prompt("c", "a", "b")
    [(exact, _)] = engine.run(request(token_ids, BlendPlan(capture=(whole(token_ids, "exact"),))))
    blend = BlendPlan(load=spans, capture=(whole(token_ids, "blended"),), repair=repair)
    [(blended, output)] = engine.run(request(token_ids, blend))
    assert output.chunk_use == ChunkUse(0, spans[-1].end, ())
    assert blended == exact
    wanted, found = engine.kv("exact"), engine.kv("blended")
    assert (found.keys_LTHD - wanted.keys_LTHD).abs().max() < 1e-5 * wanted.keys_LTHD.abs().max()
    assert (found.values_LTHD - wanted.values_LTHD).abs().max() < 1e-5 * wanted.values_LTHD.abs().max()


def test_loaded_keys_are_turned_to_where_they_stand(engine: Engine):
    capture_alone(engine, "a", "b")
    token_ids, spans = prompt("b", "a")
    engine.run(request(token_ids, BlendPlan(capture=(whole(token_ids, "exact"),))))
    plan = BlendPlan(load=spans, capture=(whole(token_ids, "blended"),), repair=NOTHING)
    [(_, output)] = engine.run(request(token_ids, plan))
    assert output.chunk_use is not None
    assert output.chunk_use.loaded == len(CHUNKS["a"]) + len(CHUNKS["b"])
    # The first layer's KV depends on a token and its place alone; the first chunk saw what it sees here.
    for layers, tokens in ((slice(0, 1), slice(0, None)), (slice(None), slice(0, spans[0].end))):
        for kind in ("keys_LTHD", "values_LTHD"):
            wanted = getattr(engine.kv("exact"), kind)[layers, tokens]
            found = getattr(engine.kv("blended"), kind)[layers, tokens]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    far = (engine.kv("blended").keys_LTHD - engine.kv("exact").keys_LTHD)[-1, spans[1].start : spans[1].end]
    assert far.abs().max() > 1e-3, "the second chunk should have been taken from the store, not computed"


def test_the_first_tokens_of_each_chunk_are_computed_again(engine: Engine):
    capture_alone(engine, "a", "b")
    token_ids, spans = prompt("b", "a")
    plan = BlendPlan(load=spans, repair=Repair(first_k=16))
    [(_, output)] = engine.run(request(token_ids, plan))
    gaps = spans[0].start + len(GAP)
    assert output.chunk_use == ChunkUse(spans[-1].end - gaps - 32, gaps + 32, ())


def test_deviation_repairs_the_share_asked_for_and_comes_closer_than_chance(engine: Engine):
    capture_alone(engine, "a", "b", "c")
    token_ids, spans = prompt("c", "a", "b")
    engine.run(request(token_ids, BlendPlan(capture=(whole(token_ids, "exact"),))))
    errors = {}
    for share in (0.0, 0.3):
        plan = BlendPlan(spans, (whole(token_ids, "blended"),), Repair(0, share))
        [(_, output)] = engine.run(request(token_ids, plan))
        assert output.chunk_use is not None
        num_loaded = sum(map(len, CHUNKS.values()))
        assert output.chunk_use.loaded == num_loaded - round(share * num_loaded)
        errors[share] = (engine.kv("blended").values_LTHD - engine.kv("exact").values_LTHD).square().sum()
    assert errors[0.3] < 0.7 * errors[0.0]


def test_a_chunk_that_is_not_stored_is_computed_and_named(engine: Engine):
    capture_alone(engine, "a")
    token_ids, spans = prompt("a", "b")
    spans = (spans[0], ChunkSpan(spans[1].start, spans[1].end, "nowhere"))
    [(exact, _)] = engine.run(request(token_ids, None))
    [(blended, output)] = engine.run(request(token_ids, BlendPlan(load=spans, repair=NOTHING)))
    assert output.chunk_use is not None
    assert (output.chunk_use.loaded, output.chunk_use.missing) == (len(CHUNKS["a"]), ("nowhere",))
    # "a" stands where it was computed, and all else is computed here: nothing is approximate.
    assert blended == exact


def test_a_few_stored_tokens_beyond_the_cached_prefix_are_not_worth_a_blend(engine: Engine):
    capture_alone(engine, "a")
    token_ids, [span] = prompt("a")
    # 112 tokens are 37 + 5 + 70: the exact prefix cache holds 96 of them, and 16 of the chunk are left.
    assert span.end == 112
    engine.run(request(token_ids, None, salt="few"))
    [(_, output)] = engine.run(request(token_ids[: span.end] + ids(40), BlendPlan(load=(span,)), salt="few"))
    assert output.num_cached_tokens == 96
    assert output.chunk_use == ChunkUse()


def test_chunks_that_are_on_disk_alone_are_loaded_rounded(engine: Engine):
    capture_alone(engine, "a", "b")
    exact = engine.kv("a")
    coded = encode_chunk(exact, "fine")
    assert coded is not None
    assert exact.angles is not None
    without_angles = encode_chunk(replace(exact, angles=None), "fine")
    assert without_angles is not None
    assert len(coded) < 0.95 * len(without_angles), "the angles are not those that the model turns keys by"
    engine.store.flush()
    assert (Path(str(engine.store._folder)) / "a.safetensors").stat().st_size < exact.num_bytes / 5
    for name in "ab":
        with engine.store._lock:
            engine.store._drop_from_memory(name)
    token_ids, spans = prompt("b", "a")
    [(_, output)] = engine.run(request(token_ids, BlendPlan(load=spans, repair=NOTHING)))
    assert output.chunk_use is not None
    assert output.chunk_use.loaded == len(CHUNKS["a"]) + len(CHUNKS["b"])
    assert torch.equal(engine.kv("a").keys_LTHD, decode_chunk(coded).keys_LTHD)


def test_a_chunk_whose_file_is_damaged_is_computed(engine: Engine):
    capture_alone(engine, "a", "b")
    engine.store.flush()
    for name in "ab":
        path = Path(str(engine.store._folder)) / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with engine.store._lock:
            engine.store._drop_from_memory(name)
    token_ids, spans = prompt("b", "a")
    [(exact, _)] = engine.run(request(token_ids, None))
    [(blended, output)] = engine.run(request(token_ids, BlendPlan(load=spans, repair=NOTHING)))
    assert blended == exact
    assert output.chunk_use == ChunkUse(0, spans[-1].end, ("b", "a"))
    assert engine.store.stats().corrupt == 2


def forget(engine: Engine, key: str) -> None:
    """Take a chunk out of memory once its file is written, as an eviction does."""
    engine.store.flush()
    with engine.store._lock:
        engine.store._drop_from_memory(key)


def evict(engine: Engine, key: str) -> None:
    forget(engine, key)
    with engine.store._lock:
        engine.store._drop_file(key)


def delete_file(engine: Engine, key: str) -> None:
    engine.store._path(key).unlink()


def damage_file(engine: Engine, key: str) -> None:
    engine.store._path(key).write_bytes(b"not ours")


@pytest.mark.parametrize(
    ("lose", "counted"),
    [(evict, (0, 0)), (delete_file, (0, 1)), (damage_file, (1, 0))],
    ids=["evicted", "file deleted", "file damaged"],
)
def test_a_promised_chunk_that_is_lost_before_it_is_loaded_is_computed(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Engine, str], None],
    counted: tuple[int, int],
):
    capture_alone(engine, "a", "b")
    forget(engine, "b")
    assert engine.store.tier("b") == "disk"
    token_ids, spans = prompt("a", "b")
    beside_ids, beside_spans = prompt("a")
    [(exact, _), (exact_beside, _)] = engine.run(request(token_ids, None), request(beside_ids, None))
    before, load = engine.store.stats(), engine.connector._load
    promised: list[int] = []

    def lose_and_load(tasks: list[Any]) -> None:
        promised.extend(task.end - task.begin for task in tasks)
        lose(engine, "b")
        load(tasks)

    monkeypatch.setattr(engine.connector, "_load", lose_and_load)
    [(blended, output), (blended_beside, output_beside)] = engine.run(
        request(token_ids, BlendPlan(load=spans, repair=NOTHING)),
        request(beside_ids, BlendPlan(load=beside_spans, repair=NOTHING)),
    )
    assert promised == [spans[-1].end, beside_spans[-1].end]
    # "a" stands where it was computed, and all else is computed here: nothing is approximate.
    assert (blended, blended_beside) == (exact, exact_beside)
    num_loaded = len(CHUNKS["a"])
    assert output.chunk_use == ChunkUse(num_loaded, spans[-1].end - num_loaded, ("b",))
    assert output_beside.chunk_use == ChunkUse(num_loaded, beside_spans[-1].end - num_loaded, ())
    after = engine.store.stats()
    assert after.misses == before.misses + 1
    assert (after.corrupt - before.corrupt, after.disk_errors - before.disk_errors) == counted


def test_a_chunk_of_another_model_is_computed(engine: Engine):
    engine.store.put(
        "a", ChunkKV(torch.zeros(1, len(CHUNKS["a"]), 1, 8), torch.zeros(1, len(CHUNKS["a"]), 1, 8), 0)
    )
    token_ids, spans = prompt("a")
    [(exact, _)] = engine.run(request(token_ids, None))
    [(blended, output)] = engine.run(request(token_ids, BlendPlan(load=spans, repair=NOTHING)))
    assert blended == exact
    assert output.chunk_use == ChunkUse(0, spans[-1].end, ())


def test_requests_of_one_step_are_blended_each_by_its_own_plan(engine: Engine):
    capture_alone(engine, "a", "b", "c")
    orders = [("a", "b"), ("c", "a", "b"), ("b",)]
    alone = [engine.run(request(ids, BlendPlan(load=spans)))[0][0] for ids, spans in map(prompt_of, orders)]
    mixed = [request(ids, BlendPlan(load=spans)) for ids, spans in map(prompt_of, orders)]
    exact_ids, _ = prompt("b", "c")
    [(exact, _)] = engine.run(request(exact_ids, None))
    together = engine.run(*mixed, request(exact_ids, None))
    assert [tokens for tokens, _ in together] == [*alone, exact]


@pytest.mark.parametrize(("step_tokens", "per_step"), [(1024, [3]), (160, [2, 1]), (32, [1, 1, 1])])
def test_what_does_not_fit_a_step_waits_for_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, step_tokens: int, per_step: list[int]
):
    capture_alone(engine, "a", "b", "c")
    asked = [prompt(*names) for names in ("ab", "ca", "b")]
    alone = [engine.run(request(ids, BlendPlan(load=spans)))[0][0] for ids, spans in asked]
    scheduler = engine.vllm._engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler.connector, "_max_step_tokens", step_tokens)
    steps: list[int] = []
    load = engine.connector._load
    monkeypatch.setattr(engine.connector, "_load", lambda tasks: (steps.append(len(tasks)), load(tasks)))
    together = engine.run(*(request(ids, BlendPlan(load=spans)) for ids, spans in asked))
    assert [tokens for tokens, _ in together] == alone
    assert all(output.chunk_use and output.chunk_use.loaded for _, output in together)
    assert steps == per_step


def prompt_of(names: tuple[str, ...]) -> tuple[list[int], tuple[ChunkSpan, ...]]:
    return prompt(*names)


def test_blended_kv_never_reaches_an_exact_request(engine: Engine):
    capture_alone(engine, "a", "b")
    token_ids, spans = prompt("b", "a")
    engine.run(request(token_ids, BlendPlan(load=spans, repair=NOTHING), salt="tenant blended"))
    [(_, first)] = engine.run(request(token_ids, None, salt="tenant exact"))
    assert first.num_cached_tokens == 0
    [(_, again)] = engine.run(
        request(token_ids, BlendPlan(load=spans, repair=NOTHING), salt="tenant blended")
    )
    assert again.num_cached_tokens >= spans[-1].end - 32, "the blended prefix itself is reused"


def test_an_aborted_blend_leaves_no_block_and_no_record(engine: Engine):
    capture_alone(engine, "a", "b")
    token_ids, spans = prompt("b", "a")
    asked = request(token_ids, BlendPlan(load=spans), max_tokens=500)
    engine.vllm.add(asked)
    engine.vllm.step()
    engine.vllm.abort(asked.request_id)
    assert not engine.vllm.busy()
    engine.run(request(token_ids, None))
    assert engine.vllm.load().num_running == 0
    assert not engine.shared.uses
    assert engine.num_held_blocks == 0


@pytest.mark.parametrize(
    ("owner", "field", "value", "reason"),
    [
        ("impl", "sliding_window", 128, "a sliding window"),
        ("impl", "kv_cache_dtype", "fp8", "KV is kept as fp8"),
        ("impl", "alibi_slopes", torch.ones(2), "ALiBi"),
        ("impl", "kv_sharing_target_layer_name", "layers.0", "shares another layer's KV"),
        ("parallel", "tensor_parallel_size", 2, "split over several workers"),
        ("vllm", "speculative_config", object(), "speculative decoding"),
    ],
)
def test_a_model_that_would_be_got_wrong_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, owner: str, field: str, value: object, reason: str
):
    from serving.chunk_kv.supported_models import refusal

    runner = engine.runner
    assert refusal(runner.model, runner.vllm_config, runner.attn_groups) is None
    layers = runner.vllm_config.compilation_config.static_forward_context
    owners = {
        "impl": next(iter(layers.values())).impl,
        "parallel": runner.vllm_config.parallel_config,
        "vllm": runner.vllm_config,
    }
    monkeypatch.setattr(owners[owner], field, value)
    assert reason in str(refusal(runner.model, runner.vllm_config, runner.attn_groups))


def test_keys_that_turn_in_another_way_are_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

    from serving.chunk_kv.supported_models import refusal

    runner = engine.runner
    rope = runner.model.model.layers[0].self_attn.rotary_emb
    monkeypatch.setattr(rope, "__class__", YaRNScalingRotaryEmbedding)
    reason = refusal(runner.model, runner.vllm_config, runner.attn_groups)
    assert "YaRNScalingRotaryEmbedding cannot be moved by a rotation" in str(reason)


def test_a_chunk_whose_prefill_is_split_over_steps_is_not_captured(engine: Engine):
    # On a GPU vLLM splits long prefills; what is not computed yet must not reach the store.
    token_ids, [span] = prompt("a")
    asked = SimpleNamespace(
        req_id="split",
        sampling_params=SimpleNamespace(
            extra_args={"kv_transfer_params": BlendPlan(capture=(span,)).params()}
        ),
        num_computed_tokens=0,
        prompt_token_ids=token_ids,
        block_ids=([1, 2, 3, 4],),
    )
    connector = engine.connector
    for num_scheduled, captured in ((span.end - 1, ()), (span.end, (span,))):
        step = SimpleNamespace(scheduled_new_reqs=[asked], num_scheduled_tokens={"split": num_scheduled})
        [task] = connector.build_connector_meta(step).tasks
        assert task.capture == captured


def test_a_worker_without_its_scheduler_is_not_used(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    connector = engine.connector
    monkeypatch.setattr(engine.shared, "roles", {"worker"})
    monkeypatch.setattr(engine.shared, "is_attached", True)
    assert "two processes" in connector.attach(engine.runner)
    assert not engine.shared.is_attached


PASSAGES = [
    PromptPassage(f"chunk {number}", f"Note {number}", text * 6)
    for number, text in enumerate(
        (
            "Paged attention keeps the KV cache in blocks that need not be neighbours. ",
            "A radix tree finds the longest prefix that two prompts share. ",
            "Rotary embeddings turn keys by an angle that grows with the position. ",
        )
    )
]
EXACT, BLEND = KVReuse(), KVReuse("blend")


@pytest.fixture
def gate() -> GateConfig:
    return GateConfig(check_share=0.0)


@pytest.fixture
async def generator(engine: Engine, gate: GateConfig) -> AsyncIterator[LocalGenerator]:
    """The generator as it is served, over the module's engine, which outlives it."""
    config = replace(engine.config, blend_gate=gate)
    driver = InprocDriver(config, "", build=lambda *_: (Unclosed(engine.vllm), StartTimings(0.0, 0.0)))
    generator = LocalGenerator(config, driver)
    await generator.start()
    yield generator
    await generator.stop()


class Unclosed:
    """An engine that stays when its driver stops."""

    def __init__(self, vllm: object) -> None:
        self._vllm = vllm

    def __getattr__(self, name: str) -> object:
        return getattr(self._vllm, name)

    def close(self) -> None:
        pass


async def answer(
    generator: LocalGenerator, order: tuple[int, ...], reuse: KVReuse = EXACT, tenant: str = "default"
) -> tuple[str, TokenUsage]:
    prompt = rag_prompt("What is paged attention?", [PASSAGES[number] for number in order])
    asked = GenerateRequest(prompt, Sampling(max_tokens=12), tenant=tenant, reuse=reuse)
    chunks = [chunk async for chunk in generator.generate(asked)]
    assert chunks[-1].usage is not None
    return "".join(chunk.text for chunk in chunks), chunks[-1].usage


async def test_chunks_are_computed_while_idle_and_blended_from_then_on(generator: LocalGenerator):
    exact, before = await answer(generator, (0, 1, 2), tenant="new")
    first, usage = await answer(generator, (0, 1, 2), BLEND, "new")
    assert first == exact
    assert (usage.mode, usage.blended_tokens, usage.repaired_tokens) == ("exact", 0, 0)
    await generator.idle_work_done()
    _, usage = await answer(generator, (2, 0, 1), BLEND, "new")
    assert usage.mode == "blend"
    assert usage.prompt_tokens == before.prompt_tokens
    assert usage.blended_tokens > usage.prompt_tokens / 2
    assert usage.cached_tokens + usage.blended_tokens + usage.repaired_tokens < usage.prompt_tokens
    repaired, usage = await answer(generator, (1, 2, 0), KVReuse("blend", first_k=10_000), "new")
    assert repaired == (await answer(generator, (1, 2, 0), tenant="new"))[0]
    assert usage.blended_tokens == 0
    assert usage.repaired_tokens > usage.prompt_tokens / 2


async def test_exact_requests_take_nothing_from_the_store(generator: LocalGenerator):
    await answer(generator, (0, 1), BLEND)
    await generator.idle_work_done()
    _, usage = await answer(generator, (1, 0))
    assert (usage.mode, usage.blended_tokens, usage.repaired_tokens) == ("exact", 0, 0)


async def test_a_tenant_does_not_get_what_another_had_computed(generator: LocalGenerator):
    await answer(generator, (0, 1), BLEND, "mine")
    await generator.idle_work_done()
    _, mine = await answer(generator, (1, 0), BLEND, "mine")
    _, yours = await answer(generator, (1, 0), BLEND, "yours")
    assert (mine.mode, yours.mode) == ("blend", "exact")


async def test_routers_are_told_which_chunks_are_stored(engine: Engine, gate: GateConfig):
    config = replace(engine.config, blend_gate=gate, num_replicas=2)
    driver = InprocDriver(config, "", build=lambda *_: (Unclosed(engine.vllm), StartTimings(0.0, 0.0)))
    generator = LocalGenerator(config, driver)
    await generator.start()
    view = ReplicaView()
    try:
        await answer(generator, (0, 1), BLEND, "routed")
        view.take(await generator.kv_report("", 0), [])
        assert view.state.blends
        prompt = rag_prompt("And this?", [PASSAGES[number] for number in (1, 2, 0)])
        path = prompt_path(GenerateRequest(prompt, tenant="routed", reuse=BLEND), is_blended=True)
        before = view.reusable(path)
        await generator.idle_work_done()
        view.take(await generator.kv_report(view.life, view.version), [])
        after = view.reusable(path)
        assert before.memory_chars == 0
        assert after.memory_chars == pytest.approx(path.chunk_chars * 2 / 3, rel=0.01)
        view.take(await generator.kv_report("", 0), [])
        assert view.reusable(path) == after
    finally:
        await generator.stop()


@pytest.fixture
def restart(engine: Engine) -> Iterator[Callable[[], ChunkStore]]:
    """Gives the engine a store as a start does, over a folder that is empty at first; its own comes back."""
    own = engine.store
    folder = own._folder.with_name("restarted")

    def start() -> ChunkStore:
        if engine.store is not own:
            engine.store.close()
        engine.store = engine.shared.store = ChunkStore(256 << 20, folder, 256 << 20)
        return engine.store

    yield start
    engine.store.close()
    engine.store = engine.shared.store = own
    shutil.rmtree(folder, ignore_errors=True)


async def cold(
    engine: Engine, generator: LocalGenerator, reuse: KVReuse = EXACT, order: tuple[int, ...] = (2, 0, 1)
) -> tuple[str, TokenUsage]:
    """Return an answer that takes nothing from the engine's prefix cache."""
    await generator.idle_work_done()
    assert engine.vllm._engine.reset_prefix_cache()
    return await answer(generator, order, reuse, "cold")


async def test_a_full_disk_costs_files_and_neither_answers_nor_memory(
    engine: Engine, generator: LocalGenerator, restart: Callable[[], ChunkStore]
):
    answers = []
    for free_bytes, num_files in ((resource.RLIM_INFINITY, 3), (1 << 16, 0)):
        store = restart()
        with full_disk(free_bytes):
            await cold(engine, generator, BLEND, (0, 1, 2))
            answers.append(await cold(engine, generator, BLEND))
            store.flush()
        stats = store.stats()
        assert (stats.memory_chunks, stats.disk_chunks) == (3, num_files)
        assert stats.disk_errors == 3 - num_files
        assert len(os.listdir(store._folder)) == num_files
        shutil.rmtree(store._folder)
    assert answers[0][1].mode == "blend"
    assert answers[1] == answers[0]
    assert 'graft_chunk_kv_lost_total{why="disk_errors"} 3.0' in await generator.metrics_text()


async def test_a_folder_deleted_while_serving_costs_files_and_neither_answers_nor_memory(
    engine: Engine, generator: LocalGenerator, restart: Callable[[], ChunkStore]
):
    exact, _ = await cold(engine, generator)
    store = restart()
    await cold(engine, generator, BLEND, (0, 1, 2))
    blended = await cold(engine, generator, BLEND)
    assert blended[1].mode == "blend"
    store.flush()
    shutil.rmtree(store._folder)
    assert await cold(engine, generator, BLEND) == blended, "memory goes on"
    for key in list(store._chunks):
        forget(engine, key)
    text, usage = await cold(engine, generator, BLEND)
    assert (text, usage.mode) == (exact, "exact"), "what the files held was promised, and is computed"
    assert usage.repaired_tokens > usage.prompt_tokens / 2
    assert (store.stats().disk_errors, store.stats().disk_chunks) == (3, 0)
    assert await cold(engine, generator, BLEND) == blended
    assert store.stats().memory_chunks == 3
    store.flush()
    assert store.stats().disk_errors == 6


def tear_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [shutil.rmtree, tear_files])
async def test_chunks_lost_between_two_starts_are_computed_again(
    engine: Engine,
    generator: LocalGenerator,
    restart: Callable[[], ChunkStore],
    damage: Callable[[Path], None],
):
    exact, _ = await cold(engine, generator)
    store = restart()
    await cold(engine, generator, BLEND, (0, 1, 2))
    blended = await cold(engine, generator, BLEND)
    assert blended[1].mode == "blend"
    store.close()
    damage(store._folder)
    store = restart()
    text, usage = await cold(engine, generator, BLEND)
    assert (text, usage.mode) == (exact, "exact")
    assert await cold(engine, generator, BLEND) == blended
    store.flush()
    stats = store.stats()
    assert (stats.disk_chunks, stats.disk_errors) == (3, 0)
    assert stats.corrupt == (3 if damage is tear_files else 0)


async def test_a_prompt_too_long_to_blend_is_refused_and_nothing_is_asked_of_the_store(
    generator: LocalGenerator, engine: Engine
):
    passages = [PromptPassage(f"long {number}", "title", "many words " * 400) for number in range(5)]
    request = GenerateRequest(rag_prompt("why?", passages), reuse=BLEND)
    num_tokens = await generator.count_tokens(request.prompt)
    before = engine.store.stats()
    with pytest.raises(PromptTooLong, match=f"has {num_tokens} tokens and the context window 2048 "):
        async for _ in generator.generate(request):
            pass
    await generator.idle_work_done()
    assert engine.store.stats() == before
    assert held(generator) == Held()


class TestGate:
    """Blended answers are made again exactly, and blending ends where they differ."""

    @pytest.fixture
    def gate(self) -> GateConfig:
        return GateConfig(window=2, max_kl=0.0001, min_agreement=1.0)

    async def test_blending_ends_for_answers_that_diverge_and_exact_ones_go_on(
        self, generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
    ):
        # Other tests' libraries turn loggers off that they did not make, so the log is not read back.
        said: list[str] = []
        monkeypatch.setattr(
            "serving.chunk_kv.blending.logger.warning", lambda text, *values: said.append(text % values)
        )
        nothing = KVReuse("blend", first_k=0)
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            await answer(generator, order, nothing, "watched")
            await generator.idle_work_done()
        reason = (await generator.stats()).no_blend_reason
        assert reason is not None
        assert "over the last 2 answers checked" in reason
        assert said == [reason]
        text, usage = await answer(generator, (2, 0, 1), nothing, "watched")
        assert usage.mode == "exact"
        assert text == (await answer(generator, (2, 0, 1), tenant="watched"))[0]
        metrics = await generator.metrics_text()
        assert "graft_generator_blend_closed 1.0" in metrics
        assert "graft_generator_blend_checks_total 2.0" in metrics

    async def test_answers_equal_to_the_exact_ones_keep_it_open(self, generator: LocalGenerator):
        # The first passage stands where its KV was computed, so nothing about it is approximate.
        for first_k in range(3):
            await answer(generator, (0,), KVReuse("blend", first_k=first_k), "open")
            await generator.idle_work_done()
        assert (await generator.stats()).no_blend_reason is None
        assert "graft_generator_blend_agreement 1.0" in await generator.metrics_text()


async def test_an_engine_whose_model_fails_ends_every_request_and_holds_nothing_for_them(
    engine: Engine, generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
):
    """The last case: the engine under it is broken in the middle of a step."""
    await answer(generator, (0, 1), BLEND)
    begun: set[int] = set()

    async def read(number: int) -> None:
        prompt = rag_prompt(f"{number}?", PASSAGES[:2])
        sampling = Sampling(max_tokens=1500, temperature=2.0, seed=number)
        reuse = BLEND if number % 2 else EXACT
        async for _ in generator.generate(GenerateRequest(prompt, sampling, reuse=reuse)):
            begun.add(number)

    tasks = [asyncio.create_task(read(number)) for number in range(40)]
    async with asyncio.timeout(60):
        while len(begun) < engine.config.max_num_seqs:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
    assert held(generator).tenants_waiting == 40 - len(begun)
    assert engine.num_held_blocks > 0

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory for the step")

    monkeypatch.setattr(engine.runner.model, "forward", fail)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        assert isinstance(result, GeneratorUnavailable)
        assert "no memory for the step" in str(result)
    assert generator.health().status == "failed"
    assert held(generator) == DEAD
    async with asyncio.timeout(60):
        await generator.idle_work_done()
    with pytest.raises(GeneratorUnavailable, match="no memory for the step"):
        await answer(generator, (0, 1))
    # What a dead engine still holds goes with its process; vLLM lets go of it when it is asked.
    for request_id in list(engine.vllm._engine_ids):
        engine.vllm.abort(request_id)
