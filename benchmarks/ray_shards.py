"""Two shards behind Ray under several loads: the arms `ray_2_shards` of `search_latency`.

A caller sends its next batch when the last one is answered, so callers x batch queries are in flight all the
time, and by Little's law the mean time of a batch is that number over the queries a second: at 1,000 a second
within 60 ms, at most 60 can be in flight. The loads are measured in turns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.book_passages import BookPassages
from benchmarks.report import Report
from retrieval.config import RetrievalConfig
from retrieval.types import Record, SearchRequest

if TYPE_CHECKING:
    from retrieval.actor import ActorRetrieval

LOADS = ((1, 32), (2, 16), (2, 32), (4, 8), (4, 16), (4, 32))
"""Callers, and queries of a batch."""
TURNS = 4
TURN_S = 3.0
NUM_QUERIES = 256
WARM_BATCH = 32


async def two_shards(
    report: Report, folder: Path, books: BookPassages, qps_target: float, p99_target_ms: float
) -> None:
    """Report queries a second and the p99 of a batch, over an exact and an approximate index.

    Args:
        report: Where the figures go.
        folder: An empty folder.
        books: What is indexed, with its vectors.
        qps_target: Queries a second aimed at.
        p99_target_ms: Milliseconds a batch may take at most, 99 times of 100.
    """
    import ray

    from retrieval.actor import ActorRetrieval

    ray.init(
        num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        for kind in ("exact", "ivf_pq"):
            config = RetrievalConfig(num_shards=2, index_kind=kind, token_codec="none")
            options = {"num_cpus": 0}
            retrieval = ActorRetrieval.start(
                folder / kind,
                config,
                namespace="benchmark",
                num_threads=1,
                embedder_options=options,
                shard_options=options,
            )
            try:
                await retrieval.ready()
                await _fill(retrieval, books)
                await retrieval.compact()
                await _load(report, retrieval, books, kind, qps_target, p99_target_ms)
            finally:
                await retrieval.aclose()
    finally:
        ray.shutdown()


async def _fill(retrieval: ActorRetrieval, books: BookPassages) -> None:
    for start in range(0, len(books.texts), 1000):
        rows = range(start, min(start + 1000, len(books.texts)))
        records = [Record(f"{row:07d}", books.texts[row], books.vectors_ND[row]) for row in rows]
        await retrieval.upsert(records)


async def _load(
    report: Report,
    retrieval: ActorRetrieval,
    books: BookPassages,
    kind: str,
    qps_target: float,
    p99_target_ms: float,
) -> None:
    texts = [" ".join(text.split()[40:48]) for text in books.texts[:: len(books.texts) // NUM_QUERIES]]
    asked = [SearchRequest(text, 10, mode="dense", rerank="none") for text in texts[:NUM_QUERIES]]
    for start in range(0, len(asked), WARM_BATCH):  # The query vectors are kept from here on.
        await retrieval.search(asked[start : start + WARM_BATCH])
    seconds: dict[tuple[int, int], list[float]] = {load: [] for load in LOADS}
    spent_s = dict.fromkeys(LOADS, 0.0)
    for _ in range(TURNS):
        for load in LOADS:
            started = time.perf_counter()
            await _turn(retrieval, asked, load, seconds[load])
            spent_s[load] += time.perf_counter() - started
    best = 0.0
    for callers, batch in LOADS:
        taken_ms = np.array(seconds[callers, batch]) * 1000
        qps = len(taken_ms) * batch / spent_s[callers, batch]
        p99_ms = float(np.percentile(taken_ms, 99))
        arm = f"ray_2_shards_{callers}x{batch}"
        about = {"kind": kind, "callers": callers, "batch": batch, "chunks": len(books.texts)}
        report.add(arm, "qps", round(qps), "queries/s", target=qps_target, better="higher",
                   **about)  # fmt: skip
        report.add(arm, "p99_ms", round(p99_ms, 1), "ms", target=p99_target_ms, batches=len(taken_ms),
                   p50_ms=round(float(np.percentile(taken_ms, 50)), 1), **about)  # fmt: skip
        if p99_ms <= p99_target_ms:
            best = max(best, qps)
    report.add("ray_2_shards", f"qps_within_{p99_target_ms:g}_ms", round(best), "queries/s",
               target=qps_target, better="higher", kind=kind, chunks=len(books.texts))  # fmt: skip


async def _turn(
    retrieval: ActorRetrieval, asked: list[SearchRequest], load: tuple[int, int], seconds: list[float]
) -> None:
    """Keep callers x batch queries in flight for a while, and note what each batch took."""
    callers, size = load
    ends = time.perf_counter() + TURN_S

    async def call(offset: int) -> None:
        position = offset * size
        while time.perf_counter() < ends:
            batch = [asked[(position + item) % len(asked)] for item in range(size)]
            started = time.perf_counter()
            results = await retrieval.search(batch)
            seconds.append(time.perf_counter() - started)
            if any(result.partial or len(result.hits) != 10 for result in results):
                raise RuntimeError(f"an incomplete answer: {results[0]}")
            position += size

    await asyncio.gather(*(call(offset) for offset in range(callers)))
