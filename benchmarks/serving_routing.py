"""How soon answers begin over two replicas, by which router sends the prompts.

Run: `python -m benchmarks.serving_routing [--quick] [--data DIR]`

Two generators of `graft-mini` in actors of one core each, with a KV cache that holds a part of what the trace
asks for. The trace: questions on topics of Zipf popularity, each with five of its topic's eight passages in
the order of retrieval; a share of them goes on a conversation, whose earlier turns are part of the prompt;
they come as a Poisson process, a part of what both replicas together can answer (`load`). All arms send it
through the same client to the same two actors, as another tenant each time, so that no KV is left from the
arm before; only the router differs: `graft` (KV events, chunk sets and load), `prefix` (the policy of
`ray.serve.llm`'s prefix router), `two_choices` (Ray Serve's default). `*_reorder` lets passages change
places. Arms are interleaved A B C C B A; ratios are of each repetition's percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import ray

from benchmarks.prefix_affinity import PrefixAffinityRouter, TwoChoicesRouter
from benchmarks.report import Report
from benchmarks.serving_ttft import NUM_PASSAGES, NUM_TOPICS, TOPIC_PASSAGES, interleaved, passages
from serving import ActorGenerator, ServingConfig, start_generator
from serving.errors import Overloaded
from serving.prompt import PromptPassage, Turn, rag_prompt
from serving.routing.routed_generator import RoutedGenerator
from serving.routing.router import KVRouter
from serving.types import GenerateRequest, KVReuse, Prompt, Sampling

ROUTERS: dict[str, Callable[[], KVRouter]] = {
    "graft": KVRouter,
    "prefix": PrefixAffinityRouter,
    "two_choices": TwoChoicesRouter,
}
REORDER = "_reorder"
ARMS = (*ROUTERS, f"graft{REORDER}", f"prefix{REORDER}")
KV_TOKENS = 16_000
"""Tokens of KV a replica holds; the trace's passages are three times as many."""
MAX_TOKENS = 16
FOLLOW_UP_SHARE = 0.3
MAX_TURNS = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent."""

    requests: int
    """Of a run."""
    repetitions: int
    """Runs of each arm at the main load."""
    loads: tuple[float, ...]
    """Parts of the capacity; the first is the main one, the others are run once with half the requests."""


FULL = Size(requests=120, repetitions=3, loads=(0.8, 1.1))
QUICK = Size(requests=40, repetitions=1, loads=(0.8,))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of the trace."""

    prompt: Prompt
    session: str
    after: int | None
    """The question it follows up, whose answer must have come."""


def conversation_trace(pool: Sequence[PromptPassage], num_requests: int, seed: int) -> list[Asked]:
    """Return questions whose topics follow Zipf's law of exponent 1, some of which go on a conversation."""
    luck = random.Random(seed)
    topics = [pool[at : at + TOPIC_PASSAGES] for at in range(0, NUM_TOPICS * TOPIC_PASSAGES, TOPIC_PASSAGES)]
    weights = [1 / rank for rank in range(1, len(topics) + 1)]
    asked: list[Asked] = []
    open_talks: list[tuple[int, int, list[Turn]]] = []
    for number in range(num_requests):
        question = f"Question {number}: what matters here?"
        history: list[Turn] = []
        session, after = f"talk {number}", None
        if open_talks and luck.random() < FOLLOW_UP_SHARE:
            after, topic_number, history = open_talks.pop(luck.randrange(len(open_talks)))
            session = asked[after].session
        else:
            [topic_number] = luck.choices(range(len(topics)), weights)
        topic = topics[topic_number]
        ranked = sorted(range(TOPIC_PASSAGES), key=lambda place: place + luck.gauss(0, 2))
        chosen = [topic[place] for place in ranked[:NUM_PASSAGES]]
        asked.append(Asked(rag_prompt(question, chosen, history), session, after))
        if len(history) // 2 + 1 < MAX_TURNS:
            turns = [*history, Turn("user", question), Turn("assistant", "They are kept in blocks.")]
            open_talks.append((number, topic_number, turns))
    return asked


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm."""

    ttft_s: list[float]
    """Of the answered requests."""
    cached_tokens: int
    prompt_tokens: int
    rejected: int

    def percentile(self, share: float) -> float:
        """Return the time that a share of the answers did not take longer to begin than."""
        return sorted(self.ttft_s)[min(int(share * len(self.ttft_s)), len(self.ttft_s) - 1)]


async def run_arm(
    replicas: Sequence[ActorGenerator], arm: str, trace: Sequence[Asked], rate: float, tenant: str
) -> Run:
    """Send the trace at so many requests a second."""
    routed = RoutedGenerator(list(replicas), ROUTERS[arm.removesuffix(REORDER)]())
    reuse = KVReuse("reorder") if arm.endswith(REORDER) else KVReuse()
    luck = random.Random(0)
    answered = [asyncio.Event() for _ in trace]
    firsts: list[float] = []
    tokens: list[tuple[int, int]] = []
    rejected: list[int] = []

    async def ask(number: int) -> None:
        asked = trace[number]
        if asked.after is not None:
            await answered[asked.after].wait()
        request = GenerateRequest(
            asked.prompt,
            Sampling(MAX_TOKENS),
            tenant=tenant,
            session=f"{tenant} {asked.session}",
            reuse=reuse,
        )
        began_s, first_s = time.perf_counter(), None
        try:
            async with aclosing(routed.generate(request)) as chunks:
                async for chunk in chunks:
                    first_s = first_s or time.perf_counter() - began_s
                    if chunk.usage is not None:
                        tokens.append((chunk.usage.cached_tokens, chunk.usage.prompt_tokens))
            firsts.append(first_s or 0.0)
        except Overloaded:
            rejected.append(number)
        finally:
            answered[number].set()

    tasks = []
    for number in range(len(trace)):
        tasks.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(luck.expovariate(rate))
    await asyncio.gather(*tasks)
    return Run(firsts, sum(cached for cached, _ in tokens), sum(all_ for _, all_ in tokens), len(rejected))


async def capacity(replicas: Sequence[ActorGenerator], trace: Sequence[Asked]) -> float:
    """Return how many requests a second both replicas answer, sent at once to the less busy of the two."""
    began_s = time.perf_counter()
    await run_arm(replicas, "two_choices", trace, 1000.0, "capacity")
    return len(trace) / (time.perf_counter() - began_s)


async def measure(report: Report, size: Size) -> None:
    """Start the replicas and measure every arm."""
    bytes_per_token = 2 * 5 * 4 * 32 * 4  # keys and values, layers, heads, dimensions, float32
    config = ServingConfig(num_replicas=2, num_threads=1, kv_cache_bytes=KV_TOKENS * bytes_per_token)
    replicas = []
    for _ in range(2):
        replica = start_generator(config, num_cpus=1)
        await replica.ready()
        replicas.append(replica)
    try:
        pool = passages()
        trace = conversation_trace(pool, size.requests, seed=1)
        most = await capacity(replicas, trace)
        report.add("capacity", "requests_per_s", round(most, 2), "1/s")
        for load in size.loads:
            is_main = load == size.loads[0]
            sent = trace if is_main else trace[: size.requests // 2]
            runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
            for number, arm in enumerate(interleaved(ARMS, size.repetitions if is_main else 1)):
                runs[arm].append(await run_arm(replicas, arm, sent, load * most, f"{load} {number}"))
            tell(report, runs, load, is_main=is_main)
    finally:
        for replica in replicas:
            await replica.stop()


def tell(report: Report, runs: dict[str, list[Run]], load: float, *, is_main: bool) -> None:
    """Report what the arms took beside the baseline."""
    for arm in ARMS:
        base = f"prefix{REORDER}" if arm.endswith(REORDER) else "prefix"
        for share, metric, target in ((0.5, "ttft_p50_ratio", 0.8), (0.99, "ttft_p99_ratio", 1.0)):
            ours = [run.percentile(share) for run in runs[arm]]
            theirs = [run.percentile(share) for run in runs[base]]
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            report.add(
                arm if is_main else f"{arm}_load_{load:g}",
                metric,
                round(statistics.median(ratios), 3),
                "ratio",
                **({"target": target, "better": "lower"} if arm == "graft" and is_main else {}),
                runs=[round(ratio, 2) for ratio in ratios],
                ms=round(1000 * statistics.median(ours), 1),
                load=load,
                hit_share=round(
                    sum(run.cached_tokens for run in runs[arm]) / sum(run.prompt_tokens for run in runs[arm]),
                    3,
                ),
                completed=sum(len(run.ttft_s) for run in runs[arm]),
                rejected=sum(run.rejected for run in runs[arm]),
            )


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: passages are the sample library's")
    parser.add_argument("--quick", action="store_true", help="few requests; keeps nothing")
    options = parser.parse_args()
    report = Report("serving_routing", quick=options.quick)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        asyncio.run(measure(report, QUICK if options.quick else FULL))
    finally:
        ray.shutdown()
    report.save()


if __name__ == "__main__":
    main()
