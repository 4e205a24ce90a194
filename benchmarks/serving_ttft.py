"""How soon an answer from passages begins when their KV is reused, and how much of it is.

Run: `python -m benchmarks.serving_ttft [--quick] [--deep] [--data DIR]`

`cached`: prompts of five passages drawn from a pool whose KV is all in the store, in random order. Arms:
`full` (nothing is reused), `blend_k16` and `blend_15` (first 16 tokens of each passage, or the 15 % that
deviate most, computed anew). `trace`: questions on topics of Zipf popularity, each with five of its topic's
eight passages in a noisy order; the store and the prefix cache begin empty in every repetition, and the KV of
passages is computed between requests, while the engine is idle. Arms: `baseline` (vLLM's prefix cache,
passages in the order of retrieval), `reorder` (in the order an earlier prompt began with), `canonical` (by
chunk id), `blend_k16`, `blend_15`.

One engine, one request at a time, arms interleaved A B C C B A; speedups are ratios of medians of each
repetition, over the whole trace and over its second half (`warm`). The weights are those of `graft-mini`, or
with `--deep` (without the trace) random ones of a model of 16 layers and 55 million parameters: what is
measured is speed, not what the answers are worth.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.random_generator import random_generator
from benchmarks.report import Report
from graft.config import REPOSITORY
from serving.chunk_kv.quality_gate import GateConfig
from serving.config import BUNDLED_MODEL, ServingConfig
from serving.environment import engine_environment
from serving.generator import LocalGenerator
from serving.prompt import PromptPassage, rag_prompt
from serving.types import GenerateRequest, KVReuse, Prompt, Sampling, TokenUsage

PASSAGE_CHARS = 900
"""About 270 tokens of graft-mini's tokenizer."""
NUM_PASSAGES = 5
NUM_TOPICS, TOPIC_PASSAGES = 24, 8
ARMS = {
    "exact": KVReuse(),
    "reorder": KVReuse("reorder"),
    "canonical": KVReuse("reorder", order="canonical"),
    "blend_k16": KVReuse("blend", first_k=16),
    "blend_15": KVReuse("blend", first_k=0, repair_share=0.15),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    cached_rounds: int
    """Prompts of each arm whose passages are all stored."""
    trace_requests: int
    """Prompts of the trace; 0 leaves it out."""
    repetitions: int
    """Runs of the trace by each arm."""


FULL, DEEP, QUICK = Size(20, 240, 5), Size(10, 0, 0), Size(4, 12, 1)


@dataclass(frozen=True, slots=True)
class First:
    """One request up to its first token."""

    ttft_s: float
    """Seconds from the call to the first token."""
    usage: TokenUsage
    """What its prompt cost."""


def passages() -> list[PromptPassage]:
    """Return passages cut from the sample library, all different."""
    found = []
    for path in sorted((REPOSITORY / "sample_library" / "documents").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        found += [
            PromptPassage(f"{path.stem} {start}", path.stem, text[start : start + PASSAGE_CHARS])
            for start in range(0, len(text) - PASSAGE_CHARS, PASSAGE_CHARS // 4)
        ]
    return found


def zipf_trace(pool: Sequence[PromptPassage], num_requests: int, seed: int) -> list[Prompt]:
    """Return prompts whose topics follow Zipf's law of exponent 1.

    Args:
        pool: At least topics times passages of a topic.
        num_requests: Prompts.
        seed: Of everything drawn.
    """
    luck = random.Random(seed)
    topics = [
        pool[start : start + TOPIC_PASSAGES]
        for start in range(0, NUM_TOPICS * TOPIC_PASSAGES, TOPIC_PASSAGES)
    ]
    weights = [1 / rank for rank in range(1, len(topics) + 1)]
    prompts = []
    for number in range(num_requests):
        [topic] = luck.choices(topics, weights)
        # Passages near the topic's middle come first, with noise: the order of a retriever.
        ranked = sorted(range(TOPIC_PASSAGES), key=lambda place: place + luck.gauss(0, 2))
        chosen = [topic[place] for place in ranked[:NUM_PASSAGES]]
        prompts.append(rag_prompt(f"Question {number}: what matters here?", chosen))
    return prompts


async def first_token(generator: LocalGenerator, prompt: Prompt, reuse: KVReuse, tenant: str) -> First:
    """Return when a prompt's first token came and what it cost."""
    request = GenerateRequest(prompt, Sampling(max_tokens=1), tenant=tenant, reuse=reuse)
    began_s = time.perf_counter()
    async with aclosing(generator.generate(request)) as chunks:
        async for chunk in chunks:
            if chunk.usage is not None:
                return First(time.perf_counter() - began_s, chunk.usage)
    raise RuntimeError("a request ended without usage")


def interleaved(arms: Sequence[str], repetitions: int) -> list[str]:
    """Return arms in the order A B C C B A .."""
    orders = itertools.cycle((list(arms), list(arms)[::-1]))
    return [arm for order in itertools.islice(orders, repetitions) for arm in order]


async def cached(
    report: Report, generator: LocalGenerator, pool: Sequence[PromptPassage], rounds: int
) -> None:
    """Measure prompts of stored passages against full prefills."""
    luck = random.Random(0)
    pool = pool[:40]
    for start in range(0, len(pool), NUM_PASSAGES):
        await first_token(
            generator, rag_prompt("Warm.", pool[start : start + NUM_PASSAGES]), ARMS["blend_k16"], "cached"
        )
    await generator.idle_work_done()
    firsts: dict[str, list[First]] = {"full": [], "blend_k16": [], "blend_15": []}
    for number, arm in enumerate(interleaved(list(firsts), rounds)):
        prompt = rag_prompt(f"Question {number}: what matters here?", luck.sample(pool, NUM_PASSAGES))
        full = arm == "full"
        reuse, tenant = ARMS["exact" if full else arm], f"full {number}" if full else "cached"
        firsts[arm].append(await first_token(generator, prompt, reuse, tenant))
        await generator.idle_work_done()  # Checks of blended answers are not to hold up the next arm.
    full_s = [first.ttft_s for first in firsts["full"]]
    for arm, target in (("blend_k16", 5.0), ("blend_15", 3.0)):
        ours = firsts[arm]
        ratios = [there / first.ttft_s for there, first in zip(full_s, ours, strict=True)]
        report.add(
            f"cached_{arm}",
            "ttft_speedup",
            round(statistics.median(full_s) / statistics.median(first.ttft_s for first in ours), 2),
            "ratio",
            target=target,
            better="higher",
            quartiles=[round(value, 2) for value in statistics.quantiles(ratios, n=4)],
            full_ms=round(1000 * statistics.median(full_s), 1),
            ttft_ms=round(1000 * statistics.median(first.ttft_s for first in ours), 1),
            prompt_tokens=round(statistics.mean(first.usage.prompt_tokens for first in ours)),
            blended_tokens=round(statistics.mean(first.usage.blended_tokens for first in ours)),
            repaired_tokens=round(statistics.mean(first.usage.repaired_tokens for first in ours)),
            rounds=rounds,
        )


async def trace(
    report: Report,
    generator: LocalGenerator,
    pool: Sequence[PromptPassage],
    num_requests: int,
    repetitions: int,
) -> None:
    """Measure a trace from an empty store, arm by arm."""
    prompts = zipf_trace(pool, num_requests, seed=1)
    targets = {
        "reorder": (1.5, 3.0),
        "canonical": (1.5, 3.0),
        "blend_k16": (2.5, 6.0),
        "blend_15": (2.5, 6.0),
    }
    runs: dict[str, list[list[First]]] = {arm: [] for arm in ("baseline", *targets)}
    for number, arm in enumerate(interleaved(list(runs), repetitions)):
        reuse, tenant, run = ARMS["exact" if arm == "baseline" else arm], f"trace {number}", []
        for prompt in prompts:
            run.append(await first_token(generator, prompt, reuse, tenant))
            await generator.idle_work_done()
        runs[arm].append(run)

    def medians(arm: str, begin: int = 0) -> list[float]:
        return [statistics.median(first.ttft_s for first in run[begin:]) for run in runs[arm]]

    def speedups(arm: str, begin: int = 0) -> list[float]:
        pairs = zip(medians("baseline", begin), medians(arm, begin), strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def hits(arm: str) -> float:
        return statistics.mean(
            first.usage.cached_tokens + first.usage.blended_tokens for run in runs[arm] for first in run
        )

    for arm, (speedup_target, hits_target) in targets.items():
        report.add(
            arm,
            "ttft_p50_speedup",
            round(statistics.median(speedups(arm)), 2),
            "ratio",
            target=speedup_target,
            better="higher",
            runs=[round(value, 2) for value in speedups(arm)],
            warm=round(statistics.median(speedups(arm, num_requests // 2)), 2),
            baseline_ms=round(1000 * statistics.median(medians("baseline")), 1),
            ttft_ms=round(1000 * statistics.median(medians(arm)), 1),
            completed=sum(map(len, runs[arm])),
        )
        report.add(
            arm,
            "hit_tokens_ratio",
            round(hits(arm) / max(hits("baseline"), 1.0), 2),
            "ratio",
            target=hits_target,
            better="higher",
            baseline_tokens=round(hits("baseline")),
            tokens=round(hits(arm)),
        )


async def measure(report: Report, model: str, size: Size) -> None:
    """Start the engine and measure every arm."""
    # Random weights would close the gate, and their answers are not what is measured.
    gate = GateConfig() if model == BUNDLED_MODEL else GateConfig(check_share=0.0)
    config = ServingConfig(model=model, chunk_kv_bytes=3 << 30, blend_gate=gate)
    os.environ.update(engine_environment(config))  # Before torch is imported.
    generator = LocalGenerator(config)
    await generator.start()
    try:
        pool = passages()
        await cached(report, generator, pool, size.cached_rounds)
        if size.trace_requests:
            await trace(report, generator, pool, size.trace_requests, size.repetitions)
    finally:
        await generator.stop()


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: passages are the sample library's")
    parser.add_argument("--quick", action="store_true", help="few requests; keeps nothing")
    parser.add_argument("--deep", action="store_true", help="random weights of 16 layers; a file of its own")
    options = parser.parse_args()
    report = Report("serving_ttft_deep" if options.deep else "serving_ttft", quick=options.quick)
    size = QUICK if options.quick else DEEP if options.deep else FULL
    with tempfile.TemporaryDirectory() as folder:
        model = BUNDLED_MODEL
        if options.deep:
            model = str(random_generator(Path(folder), num_layers=16, hidden_dim=512))
        asyncio.run(measure(report, model, size))
    report.save()


if __name__ == "__main__":
    main()
