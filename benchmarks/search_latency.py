"""How fast one shard answers and takes writes at 100,000 chunks, and two shards behind Ray.

Every search goes through `LocalRetrieval` (legs, fusion, passages) or the actors; query vectors are given,
so no embedding is timed. Arms: `exact32` (batches of 32, dense), `hybrid_filtered` (single hybrid searches
that keep a tenth), `filter_50` ... `filter_0.1` (recall@10 of the index against exact search, by share
kept), `upsert` (durable writes, one record and batches), `open` (a closed shard to its first exact answer),
`under_writes` (search p99 while records are replaced without pause, against idle), `ray_2_shards`
(saturated, batches from several callers).
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.book_passages import BookPassages, load
from benchmarks.report import Report
from retrieval.config import RetrievalConfig
from retrieval.filters import Compare
from retrieval.service import LocalRetrieval
from retrieval.shard.shard import Shard
from retrieval.types import EmbedderInfo, EncodedTokens, Record, SearchRequest
from retrieval.versions import TokenCodec

K = 10
SHARES = (50.0, 10.0, 1.0, 0.1)
"""Per cent of the chunks a filter keeps."""
TARGETS = {
    "exact32": 550.0,
    "hybrid_filtered": 15.0,
    "filter": 0.95,
    "upsert_p50_ms": 1.0,
    "upsert_per_s": 5000.0,
    "open_ms": 200.0,
    "under_writes": 1.5,
    "ray_qps": 1000.0,
    "ray_p99_ms": 60.0,
}
QUESTIONS = 512


class VectorTable:
    """Stands for an embedder: looks vectors up, so that searches time the index."""

    def __init__(self, vectors: dict[str, np.ndarray], dim: int) -> None:
        self._vectors = vectors
        self._dim = dim

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the known vectors."""
        return np.stack([self._vectors[text] for text in texts])

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return the known vectors."""
        return await self.embed_queries(texts)

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Refuse: no token vectors are known."""
        raise NotImplementedError("the index of this benchmark keeps no token vectors")

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Refuse: no token vectors are known."""
        raise NotImplementedError("the index of this benchmark keeps no token vectors")

    async def info(self) -> EmbedderInfo:
        """Return what it stands for."""
        return EmbedderInfo("word-embedding means", "0123456789abcdef", self._dim, 512)


def questions_of(books: BookPassages, count: int) -> dict[str, np.ndarray]:
    """Return queries by text: eight words of the middle of a passage, and its vector with noise."""
    random = np.random.default_rng(7)
    chosen = random.choice(len(books.texts), count, replace=False)
    found = {}
    for row in chosen:
        words = books.texts[row].split()[40:48]
        vector_D = books.vectors_ND[row] + 0.5 * random.standard_normal(384).astype(np.float32) / 384**0.5
        found[" ".join(words)] = (vector_D / np.linalg.norm(vector_D)).astype(np.float32)
    return found


async def fill(retrieval: LocalRetrieval, books: BookPassages, batch: int = 500) -> float:
    """Store every passage as a record and return the seconds it took."""
    random = np.random.default_rng(11)
    shares = random.random(len(books.texts)) * 100
    spent = 0.0
    for start in range(0, len(books.texts), batch):
        records = [
            Record(
                f"{row:07d}",
                books.texts[row],
                books.vectors_ND[row],
                {"year": books.years[row], "author": books.authors[row], "share": float(shares[row])},
            )
            for row in range(start, min(start + batch, len(books.texts)))
        ]
        started = time.perf_counter()
        await retrieval.upsert(records)
        spent += time.perf_counter() - started
    return spent


async def timed(retrieval: LocalRetrieval, requests: list[SearchRequest], size: int) -> list[float]:
    """Return the seconds of each call of `size` searches."""
    seconds = []
    for start in range(0, len(requests) - size + 1, size):
        started = time.perf_counter()
        await retrieval.search(requests[start : start + size])
        seconds.append(time.perf_counter() - started)
    return seconds


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lie."""
    return float(np.percentile(np.asarray(values), share))


async def local(report: Report, folder: Path, books: BookPassages, kinds: Sequence[str]) -> None:
    """Report every arm of one process."""
    questions = questions_of(books, min(QUESTIONS, len(books.texts) // 4))
    embedder = VectorTable(questions, books.vectors_ND.shape[1])
    config = RetrievalConfig(max_query_terms=8, token_codec="none")
    async with await LocalRetrieval.open(folder, config, embedder) as retrieval:
        fill_s = await fill(retrieval, books)
        about = {"chunks": len(books.texts), "dim": 384}
        report.add("upsert", "records_per_s", round(len(books.texts) / fill_s), "records/s",
                   target=TARGETS["upsert_per_s"], better="higher", batch=500, **about)  # fmt: skip
        await _single_upserts(report, retrieval, books)
        await retrieval.compact()
        dense = [SearchRequest(text, K, mode="dense", rerank="none", exact=True) for text in questions]
        await timed(retrieval, dense, 32)
        seconds = await timed(retrieval, dense * 2, 32)
        report.add("exact32", "qps", round(32 / percentile(seconds, 50)), "queries/s",
                   target=TARGETS["exact32"], better="higher", calls=len(seconds), **about)  # fmt: skip
        tenth = Compare("share", "<", 10.0)
        hybrid = [SearchRequest(text, K, rerank="none", filter=tenth) for text in questions]
        await timed(retrieval, hybrid[:32], 1)
        seconds = await timed(retrieval, hybrid, 1)
        report.add("hybrid_filtered", "p95_ms", round(percentile(seconds, 95) * 1000, 2), "ms",
                   target=TARGETS["hybrid_filtered"], kept=0.1,
                   p50_ms=round(percentile(seconds, 50) * 1000, 2), **about)  # fmt: skip
        await _under_writes(report, retrieval, books, hybrid)
    await _open_again(report, folder, questions, config, about)
    for kind in kinds:
        await _filtered_recall(report, folder, questions, config, embedder, kind)


async def _single_upserts(report: Report, retrieval: LocalRetrieval, books: BookPassages) -> None:
    seconds = []
    for row in range(300):
        record = Record(f"{row:07d}", books.texts[row], books.vectors_ND[row], {"year": 1, "share": 99.5})
        started = time.perf_counter()
        await retrieval.upsert([record])
        seconds.append(time.perf_counter() - started)
    report.add("upsert", "p50_ms", round(percentile(seconds, 50) * 1000, 3), "ms",
               target=TARGETS["upsert_p50_ms"], p99_ms=round(percentile(seconds, 99) * 1000, 3))  # fmt: skip


async def _under_writes(
    report: Report, retrieval: LocalRetrieval, books: BookPassages, requests: list[SearchRequest]
) -> None:
    """Compare search p99 with and without a writer, in turns of one second, interleaved."""
    writing, ended = threading.Event(), threading.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        row = 0
        while not ended.is_set():
            if not writing.is_set():
                await asyncio.sleep(0.005)
                continue
            row = (row + 1) % len(books.texts)
            record = Record(f"{row:07d}", books.texts[row], books.vectors_ND[row], {"year": 1, "share": 99.5})
            await retrieval.upsert([record])
            written += 1
            await asyncio.sleep(0.002)

    writer = asyncio.create_task(write())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        for turn in range(10):
            busy = turn % 2 == 1
            (writing.set if busy else writing.clear)()
            ends = time.perf_counter() + 1.5
            position = 0
            while time.perf_counter() < ends:
                started = time.perf_counter()
                await retrieval.search([requests[position % len(requests)]])
                seconds[busy].append(time.perf_counter() - started)
                position += 1
    finally:
        ended.set()
        await writer
    idle, busy_ms = percentile(seconds[False], 99) * 1000, percentile(seconds[True], 99) * 1000
    report.add("under_writes", "p99_ratio", round(busy_ms / idle, 3), "ratio", target=TARGETS["under_writes"],
               better="lower", idle_p99_ms=round(idle, 2), busy_p99_ms=round(busy_ms, 2), written=written,
               idle_p50_ms=round(percentile(seconds[False], 50) * 1000, 2),
               busy_p50_ms=round(percentile(seconds[True], 50) * 1000, 2))  # fmt: skip


async def _open_again(
    report: Report,
    folder: Path,
    questions: dict[str, np.ndarray],
    config: RetrievalConfig,
    about: dict[str, int],
) -> None:
    text, vector_D = next(iter(questions.items()))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        shard = Shard(folder, config)
        try:
            (found,) = shard.candidates(
                None, [SearchRequest(text, K, mode="dense", exact=True)], vector_D[None, :]
            )
            seconds.append(time.perf_counter() - started)
            if len(found.dense) < K:
                raise RuntimeError(f"the opened shard found {len(found.dense)} of {K} chunks")
        finally:
            shard.close()
    report.add("open", "first_exact_ms", round(percentile(seconds, 50) * 1000, 1), "ms",
               target=TARGETS["open_ms"], runs_ms=[round(item * 1000, 1) for item in seconds],
               **about)  # fmt: skip


async def _filtered_recall(
    report: Report,
    folder: Path,
    questions: dict[str, np.ndarray],
    config: RetrievalConfig,
    embedder: VectorTable,
    kind: str,
) -> None:
    """Report recall@10 against exact search, by share kept, for one kind of base segment."""
    from retrieval.admin import VersionChange

    async with await LocalRetrieval.open(folder, config, embedder) as retrieval:
        made = await retrieval.make_version(VersionChange(kind=kind))  # pyright: ignore[reportArgumentType]
        await retrieval.wait_version(made.version_id, timeout_s=900.0)
        started = time.perf_counter()
        (segment, *_) = [
            item for item in await retrieval.compact(made.version_id) if item.version_id == made.version_id
        ]
        build_s = time.perf_counter() - started
        for share in SHARES:
            kept = Compare("share", "<", share)
            asked = [
                SearchRequest(text, K, mode="dense", rerank="none", filter=kept, version=made.version_id)
                for text in list(questions)[:256]
            ]
            exact = await retrieval.search(
                [
                    SearchRequest(r.query, K, mode="dense", rerank="none", filter=kept, exact=True)
                    for r in asked
                ]
            )
            started = time.perf_counter()
            found = await retrieval.search(asked)
            qps = len(asked) / (time.perf_counter() - started)
            share_found = np.mean(
                [
                    len({p.document for p in a.passages} & {p.document for p in b.passages}) / len(b.passages)
                    for a, b in zip(found, exact, strict=True)
                ]
            )
            report.add(f"filter_{share:g}", "recall@10", round(float(share_found), 4), "share",
                       target=TARGETS["filter"], better="higher", kind=segment.kind, qps=round(qps),
                       queries=len(asked), build_s=round(build_s, 1),
                       resident_mib=round(segment.resident_bytes / 2**20, 1))  # fmt: skip


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the books")
    parser.add_argument("--quick", action="store_true", help="10,000 chunks, under 3 minutes")
    parser.add_argument("--count", type=int, default=100_000, help="chunks")
    parser.add_argument("--no-ray", action="store_true", help="leave the arm of two shards out")
    options = parser.parse_args()
    books = load(options.data, 10_000 if options.quick else options.count)
    if books is None:
        parser.exit(1, f"the books are not in {options.data}; give their folder with --data\n")
    report = Report("search_latency", quick=options.quick)
    kinds = ("exact", "ivf_sq8") if options.quick else ("auto", "ivf_pq", "ivf_sq8")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(local(report, Path(folder), books, kinds))
    if not options.no_ray:
        from benchmarks.ray_shards import two_shards

        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(two_shards(report, Path(folder), books, TARGETS["ray_qps"], TARGETS["ray_p99_ms"]))
    report.save()


if __name__ == "__main__":
    main()
