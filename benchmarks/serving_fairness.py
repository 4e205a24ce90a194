"""What a tenant waits for its first token while another one floods the generator, and what fairness costs.

Run: `python -m benchmarks.serving_fairness [--quick] [--data DIR]`

One tenant sends all its requests at once, as many as it may have waiting; another sends one every half
second, whether or not those before have been answered. Arms: `first_come` (the engine takes requests as they
came, as vLLM does), `vtc` (the fair queue with its reserved slots, the default), `vtc_plain` (the same
without reserved slots). All drive one engine in one process, in the order A B C C B A; every arm does the
same work. Throughput is prompt and generated tokens of both tenants over the time until the last one ended.
The weights are random ones of `graft-mini`'s size, whose answers have all the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.random_generator import random_generator
from benchmarks.report import Report
from benchmarks.serving_ttft import interleaved, passages
from serving.config import ServingConfig
from serving.driver import Driver, choose_driver
from serving.environment import engine_environment
from serving.fair_queue import FairQueue
from serving.generator import LocalGenerator
from serving.prompt import PromptPassage, rag_prompt
from serving.types import GenerateRequest, Prompt, Sampling
from serving.weights import model_folder

ARMS = ("first_come", "vtc", "vtc_plain")
MAX_TOKENS = 128
LIGHT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent."""

    flood: int
    """Requests of the tenant that floods."""
    light: int
    """Requests of the other."""
    repetitions: int
    """Runs of each arm."""


FULL, QUICK = Size(flood=200, light=12, repetitions=5), Size(flood=120, light=6, repetitions=1)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm."""

    light_ttft_s: list[float]
    """Seconds to the first token of each light request."""
    tokens_per_s: float
    """Tokens of both tenants."""
    completed: int
    """Requests that ended by stop or length."""


async def ask(generator: LocalGenerator, prompt: Prompt, tenant: str) -> tuple[float, int, bool]:
    """Return seconds to the first token, tokens read and written, and whether the request ended by itself."""
    request = GenerateRequest(prompt, Sampling(MAX_TOKENS), tenant=tenant)
    began_s, first_s, tokens, reason = time.perf_counter(), None, 0, None
    async with aclosing(generator.generate(request)) as chunks:
        async for chunk in chunks:
            first_s = first_s or time.perf_counter() - began_s
            reason = chunk.finish_reason
            if chunk.usage is not None:
                tokens = chunk.usage.prompt_tokens + chunk.usage.completion_tokens
    return first_s or 0.0, tokens, reason in ("stop", "length")


async def run_arm(generator: LocalGenerator, pool: list[PromptPassage], size: Size, number: int) -> Run:
    """Flood the generator and ask beside it; tenants are new in every run, so no KV is found."""

    def prompt(index: int) -> Prompt:
        return rag_prompt(f"Question {index}: what matters here?", [pool[index % len(pool)]])

    began_s = time.perf_counter()
    flood = [
        asyncio.create_task(ask(generator, prompt(index), f"flood {number}")) for index in range(size.flood)
    ]
    sent = []
    for index in range(size.light):
        await asyncio.sleep(LIGHT_INTERVAL_S)
        sent.append(asyncio.create_task(ask(generator, prompt(1000 + index), f"light {number}")))
    light = await asyncio.gather(*sent)
    ended = [*light, *await asyncio.gather(*flood)]
    took_s = time.perf_counter() - began_s
    return Run(
        light_ttft_s=[first_s for first_s, _, _ in light],
        tokens_per_s=sum(tokens for _, tokens, _ in ended) / took_s,
        completed=sum(is_done for _, _, is_done in ended),
    )


async def generators(config: ServingConfig, driver: Driver) -> dict[str, LocalGenerator]:
    """Return a generator for each arm, all over one engine."""
    made = {
        "first_come": LocalGenerator(replace(config, scheduling="first_come"), driver),
        "vtc": LocalGenerator(config, driver),
        "vtc_plain": LocalGenerator(config, driver),
    }
    made["vtc_plain"]._queue = FairQueue(config.max_num_seqs, config.max_queued_requests)
    for generator in made.values():
        await generator.start()
    return made


async def measure(report: Report, model: str, size: Size) -> None:
    """Start the engine and measure every arm."""
    config = ServingConfig(model=model)
    os.environ.update(engine_environment(config))  # Before torch is imported.
    driver = choose_driver(config, str(model_folder(config.model)))
    arms = await generators(config, driver)
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    try:
        pool = passages()
        await run_arm(arms["vtc"], pool, QUICK, -1)
        for number, arm in enumerate(interleaved(ARMS, size.repetitions)):
            runs[arm].append(await run_arm(arms[arm], pool, size, number))
    finally:
        await driver.stop()

    def medians_s(arm: str) -> list[float]:
        return [statistics.median(run.light_ttft_s) for run in runs[arm]]

    baseline = runs["first_come"]
    for arm in ("vtc", "vtc_plain"):
        speedups = [
            theirs / ours for theirs, ours in zip(medians_s("first_come"), medians_s(arm), strict=True)
        ]
        report.add(
            arm,
            "light_ttft_p50_speedup",
            round(statistics.median(speedups), 2),
            "ratio",
            target=5.0,
            better="higher",
            runs=[round(value, 2) for value in speedups],
            first_come_ms=round(1000 * statistics.median(medians_s("first_come"))),
            ttft_ms=round(1000 * statistics.median(medians_s(arm))),
            requests=f"{size.flood} at once beside {size.light}, one every {LIGHT_INTERVAL_S:g} s",
        )
        ratios = [
            ours.tokens_per_s / theirs.tokens_per_s for theirs, ours in zip(baseline, runs[arm], strict=True)
        ]
        report.add(
            arm,
            "throughput_ratio",
            round(statistics.median(ratios), 3),
            "ratio",
            target=0.95,
            better="higher",
            runs=[round(value, 3) for value in ratios],
            tokens_per_s=round(statistics.median(run.tokens_per_s for run in runs[arm])),
            completed=sum(run.completed for run in runs[arm]),
            sent=(size.flood + size.light) * size.repetitions,
        )


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: passages are the sample library's")
    parser.add_argument("--quick", action="store_true", help="few requests; keeps nothing")
    options = parser.parse_args()
    report = Report("serving_fairness", quick=options.quick)
    with tempfile.TemporaryDirectory() as folder:
        model = str(random_generator(Path(folder), num_layers=5, hidden_dim=256))
        asyncio.run(measure(report, model, QUICK if options.quick else FULL))
    report.save()


if __name__ == "__main__":
    main()
