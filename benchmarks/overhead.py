"""What Ray, actors, SDK and HTTP cost over the same work in one process, and whether requests get lost.

Run: `python -m benchmarks.overhead [--data DIR] [--quick] [--model MODEL]`. Two arms are interleaved in one
run (A B B A ...), one idle while the other is measured; figures are medians of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bare import BareArm, engine_rounds, passages_of, search_rounds
from benchmarks.launched import LaunchedPlatform
from benchmarks.mixed_load import CONCURRENCY, MixedLoad
from benchmarks.report import Report
from graft.config import REPOSITORY, GraftConfig
from graft.folders import document_files
from graft.sdk import AsyncGraft
from retrieval.config import RetrievalConfig
from retrieval.types import SearchRequest
from serving.config import ServingConfig
from serving.types import GenerateRequest, Generator, Prompt, Sampling, Segment

NUM_QUERIES = 32
BATCH = 8
MAX_TOKENS = 128
PROMPT_CHARS = 300
TARGETS = {"actor_path": 1.3, "sdk": 0.9, "mixed_load": 0}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    search_rounds: int
    """Pairs of search batches."""
    token_rounds: int
    """Pairs of generation batches."""
    num_requests: int
    """Requests of the mixed load."""
    num_cancelled: int
    """Of those, left by their client."""


FULL = Size(search_rounds=60, token_rounds=40, num_requests=1_000, num_cancelled=100)
QUICK = Size(search_rounds=20, token_rounds=3, num_requests=200, num_cancelled=20)


def questions() -> list[str]:
    """Return the questions of the sample library."""
    lines = (REPOSITORY / "sample_library" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def sample_files() -> list[Path]:
    """Return the documents of the sample library."""
    return document_files(REPOSITORY / "sample_library" / "documents")


async def interleaved(
    rounds: int, first: Callable[[], Awaitable[float]], second: Callable[[], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Return what both arms measured, in the order first second second first."""
    firsts: list[float] = []
    seconds: list[float] = []
    for number in range(rounds):
        for arm, values in ((first, firsts), (second, seconds))[:: -1 if number % 2 else 1]:
            values.append(await arm())
    return firsts, seconds


def spread(values: list[float]) -> list[float]:
    """Return the quartiles, rounded."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


async def actor_path(report: Report, home: Path, size: Size) -> None:
    """Compare search through the actors with the same classes in one process.

    Asked the same batch again, both embedders have its vectors at hand: what is compared is FAISS, SQLite and
    the way there. The ratio for queries never seen before, which must be embedded, is beside it.
    """
    config = RetrievalConfig()
    known = [SearchRequest(question) for question in questions()[:NUM_QUERIES]]
    numbers = itertools.count()

    def unseen() -> list[SearchRequest]:
        return [SearchRequest(f"{request.query} ({next(numbers)})") for request in known]

    with BareArm(search_rounds, config, sample_files()) as bare:
        graft = await AsyncGraft.up(GraftConfig(home=home, retrieval=config), parts=("retrieval",))
        try:
            await asyncio.to_thread(bare.wait_ready)
            found = passages_of(await graft.retriever.search(known))
            if found != (await asyncio.to_thread(bare.round, known))[1] or not all(found):
                raise RuntimeError("the two arms do not find the same passages; their latencies say nothing")
            await _compare_search(report, "latency_ratio", graft, bare, lambda: known, size.search_rounds)
            await _compare_search(
                report, "latency_ratio_embedding", graft, bare, unseen, size.search_rounds // 5
            )
        finally:
            await graft.aclose()


async def _compare_search(
    report: Report,
    metric: str,
    graft: AsyncGraft,
    bare: BareArm,
    batch: Callable[[], list[SearchRequest]],
    rounds: int,
) -> None:
    async def one_process() -> float:
        return (await asyncio.to_thread(bare.round, batch()))[0]

    async def actors() -> float:
        requests = batch()
        began_s = time.perf_counter()
        await graft.retriever.search(requests)
        return (time.perf_counter() - began_s) * 1000

    await interleaved(2, actors, one_process)
    through, within = await interleaved(rounds, actors, one_process)
    ratios = [a / b for a, b in zip(through, within, strict=True)]
    report.add(
        "actor_path",
        metric,
        round(statistics.median(ratios), 3),
        "ratio",
        target=TARGETS["actor_path"],
        quartiles=spread(ratios),
        rounds=rounds,
        batch=NUM_QUERIES,
        actors_ms=round(statistics.median(through), 2),
        one_process_ms=round(statistics.median(within), 2),
    )


async def sdk(report: Report, home: Path, model: str, size: Size) -> None:
    """Compare tokens per second through the SDK's generator with vLLM's own loop."""
    config = ServingConfig(model=model)
    # Text to go on with, not a question: it ends late, so that both arms keep their batch full.
    texts = [path.read_text(encoding="utf-8") for path in sample_files() if path.suffix == ".md"]
    prompts = [Prompt((Segment("question", text[:PROMPT_CHARS]),)) for text in texts[:BATCH]]
    with BareArm(engine_rounds, config) as bare:
        await asyncio.to_thread(bare.wait_ready)
        graft = await AsyncGraft.up(GraftConfig(home=home, serving=config), parts=("generator",))
        try:
            counts: dict[str, list[int]] = {"sdk": [], "bare": []}

            async def through() -> float:
                began_s = time.perf_counter()
                tokens = await asyncio.gather(*(_num_tokens(graft.generator, prompt) for prompt in prompts))
                counts["sdk"].append(sum(tokens))
                return sum(tokens) / (time.perf_counter() - began_s)

            async def within() -> float:
                tokens, seconds = await asyncio.to_thread(bare.round, (prompts, MAX_TOKENS))
                counts["bare"].append(tokens)
                return tokens / seconds

            await interleaved(1, through, within)
            ours, theirs = await interleaved(size.token_rounds, through, within)
        finally:
            await graft.aclose()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    report.add(
        "sdk",
        "tokens_per_s_ratio",
        round(statistics.median(ratios), 3),
        "ratio",
        target=TARGETS["sdk"],
        better="higher",
        quartiles=spread(ratios),
        rounds=size.token_rounds,
        batch=BATCH,
        sdk_tokens_per_s=round(statistics.median(ours), 1),
        bare_tokens_per_s=round(statistics.median(theirs), 1),
        tokens_per_output={arm: round(statistics.mean(totals) / BATCH, 1) for arm, totals in counts.items()},
        model=Path(model).name,
    )


async def _num_tokens(generator: Generator, prompt: Prompt) -> int:
    request = GenerateRequest(prompt, Sampling(max_tokens=MAX_TOKENS))
    num_tokens = 0
    async with aclosing(generator.generate(request)) as chunks:  # pyright: ignore[reportArgumentType]
        async for chunk in chunks:
            num_tokens += len(chunk.token_ids)
    return num_tokens


async def mixed_load(report: Report, home: Path, model: str, size: Size) -> bool:
    """Send mixed requests over HTTP, leave some midway, and count what is lost; return whether none is."""

    def start() -> LaunchedPlatform:
        platform = LaunchedPlatform(home, model)
        try:
            platform.wait_listening()
        except RuntimeError:
            platform.stop()
            raise
        return platform

    platform = await asyncio.to_thread(start)
    try:
        load = MixedLoad(platform.url, model, questions(), len(sample_files()))
        outcome = await load.run(size.num_requests, size.num_cancelled)
    finally:
        await asyncio.to_thread(platform.stop)
    report.add(
        "mixed_load",
        "requests_lost",
        len(outcome.lost),
        "requests",
        target=TARGETS["mixed_load"],
        requests=size.num_requests,
        complete=dict(outcome.complete),
        cancelled=dict(outcome.cancelled),
        refused_then_retried=outcome.refusals,
        left_in_engine=outcome.left_in_engine,
        concurrency=CONCURRENCY,
        seconds=round(outcome.seconds, 1),
        lost=outcome.lost[:10],
        model=Path(model).name,
    )
    return not outcome.lost and not outcome.left_in_engine


async def measure(report: Report, options: Any) -> bool:
    """Run the arms asked for; return whether no request was lost."""
    size = QUICK if options.quick else FULL
    none_lost = True
    with tempfile.TemporaryDirectory(prefix="graft-overhead-") as folder:
        home = Path(folder)
        if "actor_path" in options.arms:
            await actor_path(report, home / "actor_path", size)
        if "sdk" in options.arms:
            await sdk(report, home / "sdk", options.model, size)
        if "mixed_load" in options.arms:
            none_lost = await mixed_load(report, home / "mixed_load", options.model, size)
    return none_lost


def main() -> None:
    """Run the benchmark; exit status 1 when a request was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of public data sets; this benchmark needs none")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; the result is not kept")
    parser.add_argument("--model", default="graft-mini", help="the generator: bundled name, folder, or id")
    parser.add_argument(
        "--arms", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="only these; others are kept"
    )
    options = parser.parse_args()
    partial = set(options.arms) != set(TARGETS)
    report = Report("overhead", quick=options.quick, partial=partial)
    none_lost = asyncio.run(measure(report, options))
    report.save()
    if not none_lost:
        sys.exit(1)


if __name__ == "__main__":
    main()
