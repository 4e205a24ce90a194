"""Two shards behind Ray, saturated: the arm `ray_2_shards` of `search_latency`."""

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

BATCH = 32
CALLERS = 4
SECONDS = 20.0
NUM_QUERIES = 256


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
                await _saturate(report, retrieval, books, kind, qps_target, p99_target_ms)
            finally:
                await retrieval.aclose()
    finally:
        ray.shutdown()


async def _fill(retrieval: ActorRetrieval, books: BookPassages) -> None:
    for start in range(0, len(books.texts), 1000):
        rows = range(start, min(start + 1000, len(books.texts)))
        records = [Record(f"{row:07d}", books.texts[row], books.vectors_ND[row]) for row in rows]
        await retrieval.upsert(records)


async def _saturate(
    report: Report,
    retrieval: ActorRetrieval,
    books: BookPassages,
    kind: str,
    qps_target: float,
    p99_target_ms: float,
) -> None:
    texts = [" ".join(text.split()[40:48]) for text in books.texts[:: len(books.texts) // NUM_QUERIES]]
    asked = [SearchRequest(text, 10, mode="dense", rerank="none") for text in texts[:NUM_QUERIES]]
    for start in range(0, len(asked), BATCH):  # The query vectors are kept from here on.
        await retrieval.search(asked[start : start + BATCH])
    seconds: list[float] = []
    ends = time.perf_counter() + SECONDS

    async def call(offset: int) -> None:
        position = offset * BATCH
        while time.perf_counter() < ends:
            batch = [asked[(position + item) % len(asked)] for item in range(BATCH)]
            started = time.perf_counter()
            results = await retrieval.search(batch)
            seconds.append(time.perf_counter() - started)
            if any(result.partial or len(result.hits) != 10 for result in results):
                raise RuntimeError(f"an incomplete answer: {results[0]}")
            position += BATCH

    started = time.perf_counter()
    await asyncio.gather(*(call(offset) for offset in range(CALLERS)))
    qps = len(seconds) * BATCH / (time.perf_counter() - started)
    p99_ms = float(np.percentile(seconds, 99)) * 1000
    about = {"kind": kind, "batch": BATCH, "callers": CALLERS, "chunks": len(books.texts)}
    report.add("ray_2_shards", "qps", round(qps), "queries/s", target=qps_target, better="higher",
               **about)  # fmt: skip
    report.add("ray_2_shards", "p99_ms", round(p99_ms, 1), "ms", target=p99_target_ms,
               p50_ms=round(float(np.percentile(seconds, 50)) * 1000, 1), **about)  # fmt: skip
