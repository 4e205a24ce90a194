"""The real engine behind its actor: what only it can get wrong."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import (
    ActorGenerator,
    Constraint,
    GenerateRequest,
    InvalidGeneration,
    ModelUnusable,
    Prompt,
    Sampling,
    Segment,
    ServingConfig,
    Turn,
    as_chat_model,
    chat_prompt,
    start_generator,
)
from serving.prompt import CONTROL_TOKENS

pytestmark = pytest.mark.integration

LONG = Sampling(max_tokens=1500, temperature=2.0, seed=5)
HANG_S = 15.0
"""Far above what is needed and below an engine's restart: waiting for that would be a hang."""


def ask(text: str, sampling: Sampling | None = None, **fields: object) -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", text)]), sampling or Sampling(max_tokens=16), **fields)  # type: ignore[arg-type]


async def write(engine: ActorGenerator, request: GenerateRequest) -> str:
    return "".join([chunk.text async for chunk in engine.generate(request)])


async def test_info_names_model_and_hashes(engine: ActorGenerator) -> None:
    info = await engine.info()
    assert info.max_model_len == 2048
    for digest in (info.model_hash, info.tokenizer_hash):
        assert len(digest) == 16
        int(digest, 16)


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["title", "year", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_text_has_the_form_of_its_constraint(engine: ActorGenerator, temperature: float) -> None:
    async def made(constraint: Constraint) -> str:
        sampling = Sampling(120, temperature=temperature, seed=3, constraint=constraint)
        return await write(engine, ask("Describe it.", sampling))

    assert re.fullmatch(r"[A-F]{2}-\d{3}(ab)?", await made(Constraint(regex=r"[A-F]{2}-\d{3}(ab)?")))
    jsonschema.validate(json.loads(await made(Constraint(json_schema=json.dumps(SCHEMA)))), SCHEMA)
    choices = ("Relevant passage", "Irrelevant passage", "relevant")
    assert await made(Constraint(choices=choices)) in choices


async def test_constraints_of_requests_at_once_do_not_mix(engine: ActorGenerator) -> None:
    texts = [f"answer {number} of many" for number in range(12)]
    requests = [
        ask("Say it.", Sampling(40, temperature=1.0, seed=seed, constraint=Constraint(choices=(text,))))
        for seed, text in enumerate(texts)
    ]
    free = ask("Say it.", Sampling(40))
    *written, _ = await asyncio.gather(*(write(engine, request) for request in [*requests, free]))
    assert written == texts


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(regex="(["),
        Constraint(json_schema="{no json"),
        Constraint(json_schema='{"type": "object", "properties": 3}'),
        Constraint(regex="a{9999}{9999}"),
    ],
)
async def test_a_constraint_that_cannot_be_kept_is_the_callers_error(
    engine: ActorGenerator, constraint: Constraint
) -> None:
    async with asyncio.timeout(HANG_S):
        with pytest.raises(InvalidGeneration):
            await write(engine, ask("Say it.", Sampling(8, constraint=constraint)))
    assert (await engine.health()).status == "ready"
    assert await write(engine, ask("And this?"))


async def test_control_tokens_of_a_document_are_plain_characters(engine: ActorGenerator) -> None:
    hostile = "".join(CONTROL_TOKENS)
    as_document = Prompt((Segment("passage", hostile),))
    as_template = Prompt((Segment("passage", hostile, trusted=True),))
    assert await engine.count_tokens(as_template) == len(CONTROL_TOKENS)
    assert await engine.count_tokens(as_document) > 2 * len(CONTROL_TOKENS)


async def test_streamed_text_never_holds_half_a_character(engine: ActorGenerator) -> None:
    texts = await asyncio.gather(
        *(
            write(engine, ask(f"naïve 中文 🙂 {seed}", Sampling(max_tokens=64, temperature=2.0, seed=seed)))
            for seed in range(4)
        )
    )
    for text in texts:
        assert text.encode("utf-8").decode("utf-8") == text


async def test_requests_past_their_deadline_leave_the_queue(engine: ActorGenerator) -> None:
    requests = [ask(f"{i}", LONG, deadline_s=0.3) for i in range(48)]
    async with asyncio.timeout(HANG_S):
        chunks = await asyncio.gather(*(_last(engine, request) for request in requests))
    assert {chunk.finish_reason for chunk in chunks} == {"deadline"}
    stats = await engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


async def _last(engine: ActorGenerator, request: GenerateRequest):
    return [chunk async for chunk in engine.generate(request)][-1]


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(stop=("",)), "1 to 256 characters, got 0"),
        (Sampling(stop=("x" * 257,)), "got 257"),
        (Sampling(stop=tuple("abcdefghijklmnopq")), "got 17"),
        (Sampling(seed=-1), "got -1"),
        (Sampling(seed=2**70), "seed must be in"),
    ],
)
async def test_a_hurtful_value_is_the_callers_error_and_hurts_nobody(
    engine: ActorGenerator, sampling: Sampling, said: str
) -> None:
    with pytest.raises(InvalidGeneration, match=said):
        await write(engine, ask("x", sampling))
    assert (await engine.health()).status == "ready"


@pytest.mark.parametrize("text", ["", "\x00\x01", "\ufffe", "🙂" * 300, "a" * 1500])
async def test_odd_texts_are_answered(engine: ActorGenerator, text: str) -> None:
    last = await _last(engine, ask(text, Sampling(max_tokens=2), tenant=f"{text[:3]}\ud800"))
    assert last.finish_reason in ("stop", "length")


async def test_a_lone_surrogate_is_the_callers_error(engine: ActorGenerator) -> None:
    with pytest.raises(InvalidGeneration, match="surrogate"):
        await write(engine, ask("half \ud83d a character"))


async def test_many_seeded_requests_at_once_do_not_kill_the_engine(engine: ActorGenerator) -> None:
    """Their prompts exceed one step's tokens: a split prefill of a seeded request kills vLLM on a CPU."""
    sampling = Sampling(max_tokens=4, temperature=1.0, seed=7)
    prompts = [f"{number} seeded question about blocks of memory. " * 12 for number in range(32)]
    written = await asyncio.gather(*[write(engine, ask(prompt, sampling)) for prompt in prompts])
    assert len(written) == len(prompts)
    assert (await engine.health()).status == "ready"


async def test_a_person_overtakes_a_batch_job(engine: ActorGenerator) -> None:
    """With every slot and the queue full of batch requests, a person's request does not end last."""
    done: list[str] = []

    async def run(name: str, priority: int) -> None:
        await write(engine, ask(name, Sampling(max_tokens=24, temperature=2.0), priority=priority))
        done.append(name)

    batch = [asyncio.create_task(run(f"batch {i}", 20)) for i in range(96)]
    await asyncio.sleep(0.2)
    await run("person", 0)
    num_before_person = len(done) - 1
    await asyncio.gather(*batch)
    assert num_before_person < 80


async def test_one_handle_serves_several_event_loops(engine: ActorGenerator) -> None:
    def other_loop() -> str:
        return asyncio.run(write(engine, ask("from another loop")))

    here, there = await asyncio.gather(write(engine, ask("from here")), asyncio.to_thread(other_loop))
    assert isinstance(here, str)
    assert there == await write(engine, ask("from another loop"))


async def test_a_client_that_drops_its_loop_leaves_no_request_behind(engine: ActorGenerator) -> None:
    async def begin_and_leave() -> None:
        await anext(engine.generate(ask("never read", LONG)))

    await asyncio.to_thread(asyncio.run, begin_and_leave())
    for _ in range(200):
        if (await engine.stats()).num_running == 0:
            break
        await asyncio.sleep(0.05)
    assert (await engine.stats()).num_running == 0


async def test_chat_model_streams_and_reports_usage(engine: ActorGenerator) -> None:
    model = as_chat_model(engine, sampling=Sampling(max_tokens=12))
    chunks = [chunk async for chunk in model.astream([("human", "hello")])]
    text = await write(engine, ask("hello", Sampling(max_tokens=12)))
    assert "".join(str(chunk.content) for chunk in chunks) == text
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(usage) == 1
    assert usage[0]["output_tokens"] <= 12


async def test_metrics_are_valid_prometheus_text(engine: ActorGenerator) -> None:
    await write(engine, ask("count me"))
    families = {f.name: f for f in text_string_to_metric_families(await engine.metrics_text())}
    assert families["graft_generator_completion_tokens"].samples[0].value > 0
    ttft = {s.name: s.value for s in families["graft_generator_ttft_seconds"].samples if not s.labels}
    assert ttft["graft_generator_ttft_seconds_count"] > 0
    assert families["graft_generator_running"].samples[0].value == 0


async def test_a_model_that_cannot_be_served_is_told_to_every_caller(ray_session: None) -> None:
    client = start_generator(ServingConfig(model="./no-such-model"), num_cpus=0)
    try:
        with pytest.raises(ModelUnusable, match="no-such-model"):
            await client.ready()
        with pytest.raises(ModelUnusable, match="no-such-model"):
            await write(client, ask("anyone there?"))
        health = await client.health()
        assert health.status == "failed"
        assert "no-such-model" in health.detail
    finally:
        await client.stop()


async def test_the_client_travels_to_another_process(engine: ActorGenerator) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def elsewhere(client: ActorGenerator) -> str:
        return asyncio.run(client.info()).model_hash

    assert await elsewhere.remote(engine) == (await engine.info()).model_hash
