"""What the way to the engine costs a request: the first token, every other token, and the start.

Run: `python -m benchmarks.serving_overhead [--quick] [--data DIR]`

`http`: a streamed `/v1/chat/completions` to the bare model of a platform of its own. `actor`: the generator's
client in this process, its engine in an actor. `ray_serve`: the same engine in a Ray Serve deployment, read
through a streaming handle; measured where `ray[serve]` is installed with all it needs. Each is compared with
vLLM's own loop in a process of its own, fed the same tokens and read after every step; arms are asked one
after the other, in turn, and the figures are medians of the differences of a round. `ms_per_request` is what
the first token of a new prompt of about 300 tokens comes later, `ms_per_token` what each later token takes
longer, of one stream and (`batch_8`) of eight at once, per token generated.

`start`: from asking Ray for the generator's actor until it can answer. `repair`: the largest difference of a
log-probability between an answer blended with everything recomputed and one from a full prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray

from benchmarks.bare import BareArm, stream_rounds
from benchmarks.launched import LaunchedPlatform
from benchmarks.overhead import sample_files
from benchmarks.report import Report
from serving import ActorGenerator, ServingConfig, start_generator
from serving.chunk_kv.blend_plan import BlendPlan, ChunkSpan, Repair
from serving.chunk_kv.idle_work import run_to_end
from serving.driver import EngineRequest, choose_driver
from serving.environment import engine_environment
from serving.prompt import Turn, chat_prompt
from serving.types import GenerateRequest, Prompt, Sampling
from serving.weights import model_folder

MAX_TOKENS = 64
PROMPT_CHARS = 1000
BATCH = 8
TARGETS = {
    "ms_per_request": 15.0,
    "ms_per_token": 0.5,
    "engine_ready_s": 18.0,
    "recompute_all_max_diff": 1e-5,
}

Streamed = list[tuple[int, float, float]]
"""Of each prompt: tokens, seconds to the first, seconds to the last."""
Arm = Callable[[list[Prompt]], Awaitable[Streamed]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    batch_rounds: int
    starts: int


FULL, QUICK = Size(rounds=24, batch_rounds=8, starts=3), Size(rounds=5, batch_rounds=2, starts=1)


def prompts(numbers: itertools.count[int], count: int) -> list[Prompt]:
    """Return prompts that no arm has seen, of which nothing but the template is cached."""
    texts = [path.read_text(encoding="utf-8") for path in sample_files() if path.suffix == ".md"]
    chosen = [
        (number, texts[number % len(texts)][:PROMPT_CHARS]) for number in itertools.islice(numbers, count)
    ]
    return [chat_prompt([Turn("user", f"{number}: {text}")]) for number, text in chosen]


async def through_client(generator: ActorGenerator, asked: list[Prompt]) -> Streamed:
    """Stream prompts through a generator's client."""

    async def one(prompt: Prompt) -> tuple[int, float, float]:
        request = GenerateRequest(prompt, Sampling(max_tokens=MAX_TOKENS))
        began_s, first_s, last_s, num_tokens = time.perf_counter(), 0.0, 0.0, 0
        async with aclosing(generator.generate(request)) as chunks:
            async for chunk in chunks:
                last_s = time.perf_counter() - began_s
                first_s = first_s or last_s
                num_tokens += len(chunk.token_ids)
        return num_tokens, first_s, last_s

    return list(await asyncio.gather(*map(one, asked)))


async def over_http(client: httpx.AsyncClient, model: str, asked: list[Prompt]) -> Streamed:
    """Stream prompts over HTTP; the tokens are those that the usage tells."""

    async def one(prompt: Prompt) -> tuple[int, float, float]:
        [text] = [
            segment.text for segment in prompt.segments if segment.kind == "history" and not segment.trusted
        ]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s, first_s, last_s, num_tokens = time.perf_counter(), 0.0, 0.0, 0
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event.get("usage"):
                    num_tokens = event["usage"]["completion_tokens"]
                elif event["choices"] and event["choices"][0]["delta"].get("content"):
                    last_s = time.perf_counter() - began_s
                    first_s = first_s or last_s
        return num_tokens, first_s, last_s

    return list(await asyncio.gather(*map(one, asked)))


class ServeReplica:
    """The generator as a Ray Serve deployment."""

    def __init__(self, config: ServingConfig) -> None:
        from serving.generator import LocalGenerator

        self._generator = LocalGenerator(config)

    async def ready(self) -> None:
        """Start the engine."""
        await self._generator.start()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[object]:
        """Stream one answer."""
        async with aclosing(self._generator.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk


@asynccontextmanager
async def ray_serve(config: ServingConfig) -> AsyncIterator[Arm | None]:
    """Deploy the generator with Ray Serve; None where that is not installed."""
    try:
        from ray import serve
    except ImportError as error:
        print(f"ray_serve is left out: {error}")
        yield None
        return
    options = {"num_cpus": 1, "runtime_env": {"env_vars": {**os.environ, **engine_environment(config)}}}
    deployment = serve.deployment(num_replicas=1, max_ongoing_requests=2048, ray_actor_options=options)
    serve.start(http_options={"location": "NoServer"})
    handle = serve.run(deployment(ServeReplica).bind(config), name="generator", route_prefix=None)
    try:
        await handle.ready.remote()
        streaming = handle.options(stream=True)

        async def stream(asked: list[Prompt]) -> Streamed:
            async def one(prompt: Prompt) -> tuple[int, float, float]:
                request = GenerateRequest(prompt, Sampling(max_tokens=MAX_TOKENS))
                began_s, first_s, last_s, num_tokens = time.perf_counter(), 0.0, 0.0, 0
                chunks: Any = streaming.generate.remote(request)
                async for chunk in chunks:
                    last_s = time.perf_counter() - began_s
                    first_s = first_s or last_s
                    num_tokens += len(chunk.token_ids)
                return num_tokens, first_s, last_s

            return list(await asyncio.gather(*map(one, asked)))

        yield stream
    finally:
        serve.shutdown()


async def compare(report: Report, arms: dict[str, Arm], size: Size) -> None:
    """Ask the arms in turn and report what each takes longer than the bare engine."""
    numbers = itertools.count()
    for _ in range(2):
        for arm in arms.values():
            await arm(prompts(numbers, BATCH))
    names = list(arms)
    single: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    for number in range(size.rounds):
        for name in names[:: -1 if number % 2 else 1]:
            single[name] += await arms[name](prompts(numbers, 1))
    batches: dict[str, list[float]] = {name: [] for name in names}
    for number in range(size.batch_rounds):
        for name in names[:: -1 if number % 2 else 1]:
            began_s = time.perf_counter()
            streamed = await arms[name](prompts(numbers, BATCH))
            batches[name].append((time.perf_counter() - began_s) / sum(tokens for tokens, _, _ in streamed))
    for name in names:
        if name == "bare":
            continue
        first_ms = [1000 * (a[1] - b[1]) for a, b in zip(single[name], single["bare"], strict=True)]
        token_ms = [1000 * (_pace(a) - _pace(b)) for a, b in zip(single[name], single["bare"], strict=True)]
        batch_ms = [1000 * (a - b) for a, b in zip(batches[name], batches["bare"], strict=True)]
        for metric, values, theirs in (
            ("ms_per_request", first_ms, statistics.median(one[1] for one in single["bare"])),
            ("ms_per_token", token_ms, statistics.median(map(_pace, single["bare"]))),
            ("ms_per_token_batch_8", batch_ms, statistics.median(batches["bare"])),
        ):
            report.add(
                name,
                metric,
                round(statistics.median(values), 3),
                "ms",
                **({"target": TARGETS[metric], "better": "lower"} if metric in TARGETS else {}),
                quartiles=[round(value, 2) for value in statistics.quantiles(values, n=4)],
                bare_ms=round(1000 * theirs, 2),
                rounds=len(values),
            )


def _pace(streamed: tuple[int, float, float]) -> float:
    """Return the seconds of each token after the first."""
    num_tokens, first_s, last_s = streamed
    return (last_s - first_s) / max(num_tokens - 1, 1)


async def starts(report: Report, config: ServingConfig, times: int) -> None:
    """Report how long the generator's actor takes until it can answer."""
    took_s, engines_s = [], []
    for _ in range(times):
        began_s = time.perf_counter()
        generator = start_generator(config)
        ready = await generator.ready()
        took_s.append(time.perf_counter() - began_s)
        engines_s.append(ready.engine_s)
        await generator.stop()
    report.add(
        "start",
        "engine_ready_s",
        round(statistics.median(took_s), 2),
        "s",
        target=TARGETS["engine_ready_s"],
        better="lower",
        runs=[round(value, 1) for value in took_s],
        engine_s=round(statistics.median(engines_s), 2),
    )


def repair_difference(config: ServingConfig) -> float:
    """Return how far answers blended with all repaired are from exact ones; runs in a process of its own."""
    os.environ.update(engine_environment(config))
    return asyncio.run(_repair_difference(config))


async def _repair_difference(config: ServingConfig) -> float:
    driver = choose_driver(config, str(model_folder(config.model)))
    await driver.start()
    worst = 0.0
    try:
        for number in range(5):
            # Random tokens, as long as a prompt of five passages.
            token_ids = [5 + (7919 * place + 131 * number) % 8000 for place in range(1300)]
            spans = [ChunkSpan(start, start + 250, f"{number} {start}") for start in range(30, 1280, 250)]
            found = []
            for blend in (None, BlendPlan(load=tuple(spans), repair=Repair(10_000, 0.0))):
                if blend is not None:
                    for span in spans:
                        capture = BlendPlan(capture=(ChunkSpan(30, 280, span.key),))
                        alone = [*token_ids[:30], *token_ids[span.start : span.end]]
                        await run_to_end(driver, _request(alone, capture))
                output = await run_to_end(driver, _request(token_ids, blend))
                if blend is not None and (output.chunk_use is None or output.chunk_use.computed < 1000):
                    raise RuntimeError(f"the prompt was not recomputed by the connector: {output.chunk_use}")
                found.append(output.first_logprobs or {})
            exact, repaired = found
            worst = max(
                worst, max(abs(exact[token] - repaired[token]) for token in exact.keys() & repaired.keys())
            )
    finally:
        await driver.stop()
    return worst


def _request(token_ids: Sequence[int], blend: BlendPlan | None) -> EngineRequest:
    name = uuid.uuid4().hex
    return EngineRequest(
        name, list(token_ids), Sampling(max_tokens=1), cache_salt=name, blend=blend, num_logprobs=20
    )


async def measure(report: Report, size: Size) -> None:
    """Measure every arm."""
    config = ServingConfig()
    repairing = ray.remote(repair_difference).options(num_cpus=1)
    difference = await repairing.remote(ServingConfig(chunk_kv_bytes=1 << 30))
    report.add(
        "repair",
        "recompute_all_max_diff",
        float(f"{difference:.2g}"),
        "nats",
        target=TARGETS["recompute_all_max_diff"],
        better="lower",
    )
    await starts(report, config, size.starts)
    with tempfile.TemporaryDirectory(prefix="graft-overhead-") as folder:
        async with AsyncExitStack() as stack:
            platform = stack.enter_context(
                await asyncio.to_thread(LaunchedPlatform, Path(folder), config.model)
            )
            await asyncio.to_thread(platform.wait_listening)
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=platform.url, timeout=120, trust_env=False)
            )
            generator = start_generator(config)
            await generator.ready()
            stack.push_async_callback(generator.stop)
            bare = stack.enter_context(BareArm(stream_rounds, config))
            await asyncio.to_thread(bare.wait_ready)

            async def within(asked: list[Prompt]) -> Streamed:
                return await asyncio.to_thread(bare.round, (asked, MAX_TOKENS))

            arms: dict[str, Arm] = {
                "bare": within,
                "actor": lambda asked: through_client(generator, asked),
                "http": lambda asked: over_http(client, config.model, asked),
            }
            serve_arm = await stack.enter_async_context(ray_serve(config))
            if serve_arm is not None:
                arms["ray_serve"] = serve_arm
            await compare(report, arms, size)


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: prompts are made of the sample library")
    parser.add_argument("--quick", action="store_true", help="few rounds; keeps nothing")
    options = parser.parse_args()
    report = Report("serving_overhead", quick=options.quick)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        asyncio.run(measure(report, QUICK if options.quick else FULL))
    finally:
        ray.shutdown()
    report.save()


if __name__ == "__main__":
    main()
