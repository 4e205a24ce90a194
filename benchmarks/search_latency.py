"""How fast one shard answers and takes writes at 100,000 chunks, and two shards behind Ray.

Every search goes through `LocalRetrieval` (legs, fusion, passages) or the actors; query vectors are given,
so no embedding is timed. Arms: `exact32` (batches of 32, dense), `hybrid_filtered` (single hybrid searches
that keep a tenth), `filter_50` ... `filter_0.1` (recall@10 of the index against exact search, by share
kept), `upsert` (durable writes, one record and batches; beside them a bare SQLite commit of one row, in
turn), `open` (a closed shard to its first exact answer; `open_after_writes`: with the records of
`under_writes` not compacted yet), `under_writes_RATE` (search p99 while so many records a second are
replaced, `max` without pause, against idle), `ray_2_shards_CxB` (C callers send batches of B one after the
other).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sqlite3
import tempfile
import time
from collections import Counter
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
WRITE_RATES = (50.0, 200.0, math.inf)
"""Records replaced a second beside searches."""
WRITE_TURNS = 8
WRITE_TURN_S = 1.5


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
        await _single_upserts(report, retrieval, books, folder)
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
    await _open_again(report, "open_after_writes", folder, questions, config, about)
    async with await LocalRetrieval.open(folder, config, embedder) as retrieval:
        await retrieval.compact()
    await _open_again(report, "open", folder, questions, config, about)
    for kind in kinds:
        await _filtered_recall(report, folder, questions, config, embedder, kind)


async def _single_upserts(
    report: Report, retrieval: LocalRetrieval, books: BookPassages, folder: Path
) -> None:
    """Report durable writes of one record, each followed by what SQLite takes to commit one such row."""
    seconds: list[float] = []
    bare_s: list[float] = []
    with contextlib.closing(sqlite3.connect(folder / "bare.sqlite3", isolation_level=None)) as bare:
        bare.execute("PRAGMA journal_mode=WAL")
        bare.execute("PRAGMA synchronous=FULL")
        bare.execute("CREATE TABLE rows(name TEXT PRIMARY KEY, text TEXT, vector BLOB)")
        for row in range(300):
            record = _replacement(books, row)
            started = time.perf_counter()
            await retrieval.upsert([record])
            seconds.append(time.perf_counter() - started)
            values = (record.name, record.text, books.vectors_ND[row].tobytes())
            started = time.perf_counter()
            bare.execute("INSERT INTO rows VALUES (?,?,?)", values)
            bare_s.append(time.perf_counter() - started)
    p50_ms, bare_ms = percentile(seconds, 50) * 1000, percentile(bare_s, 50) * 1000
    report.add("upsert", "p50_ms", round(p50_ms, 3), "ms", target=TARGETS["upsert_p50_ms"],
               p99_ms=round(percentile(seconds, 99) * 1000, 3), bare_commit_p50_ms=round(bare_ms, 3),
               bare_commit_p99_ms=round(percentile(bare_s, 99) * 1000, 3),
               times_bare_commit=round(p50_ms / bare_ms, 2))  # fmt: skip


def _replacement(books: BookPassages, row: int) -> Record:
    """Return a record in place of one there, which no filter of these searches keeps."""
    return Record(f"{row:07d}", books.texts[row], books.vectors_ND[row], {"year": 1, "share": 99.5})


class _Writer:
    """Replaces records at a rate that can be changed meanwhile."""

    def __init__(self, retrieval: LocalRetrieval, books: BookPassages) -> None:
        self._retrieval = retrieval
        self._books = books
        self._row = 0
        self.rate: float | None = None
        """Records a second; infinite for as many as go, None for none."""
        self.num_written: Counter[float] = Counter()
        """By rate."""

    async def run(self) -> None:
        """Write until cancelled."""
        due = time.perf_counter()
        while True:
            rate = self.rate
            if rate is None:
                await asyncio.sleep(0.005)
                due = time.perf_counter()
                continue
            self._row = (self._row + 1) % len(self._books.texts)
            await self._retrieval.upsert([_replacement(self._books, self._row)])
            self.num_written[rate] += 1
            due = max(due + 1 / rate, time.perf_counter() - 1.0)  # What was missed is made up for a second.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _under_writes(
    report: Report, retrieval: LocalRetrieval, books: BookPassages, requests: list[SearchRequest]
) -> None:
    """Compare search p99 with and without a writer, in turns of a second and a half, interleaved."""
    writer = _Writer(retrieval, books)
    writing = asyncio.create_task(writer.run())
    seconds: dict[float | None, list[float]] = {rate: [] for rate in (None, *WRITE_RATES)}
    position = 0
    try:
        for _ in range(WRITE_TURNS):
            for rate, found in seconds.items():
                writer.rate = rate
                ends = time.perf_counter() + WRITE_TURN_S
                while time.perf_counter() < ends:
                    started = time.perf_counter()
                    await retrieval.search([requests[position % len(requests)]])
                    found.append(time.perf_counter() - started)
                    position += 1
    finally:
        writing.cancel()
        await asyncio.wait([writing])
    idle_ms = {share: percentile(seconds[None], share) * 1000 for share in (50, 99)}
    for rate in WRITE_RATES:
        busy_ms = {share: percentile(seconds[rate], share) * 1000 for share in (50, 99)}
        written = writer.num_written[rate] / (WRITE_TURNS * WRITE_TURN_S)
        report.add(f"under_writes_{'max' if math.isinf(rate) else f'{rate:g}'}", "p99_ratio",
                   round(busy_ms[99] / idle_ms[99], 3), "ratio", target=TARGETS["under_writes"],
                   better="lower", writes_per_s=round(written),
                   idle_p99_ms=round(idle_ms[99], 2), busy_p99_ms=round(busy_ms[99], 2),
                   idle_p50_ms=round(idle_ms[50], 2), busy_p50_ms=round(busy_ms[50], 2),
                   searches=len(seconds[rate]))  # fmt: skip


async def _open_again(
    report: Report,
    arm: str,
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
    report.add(arm, "first_exact_ms", round(percentile(seconds, 50) * 1000, 1), "ms",
               runs_ms=[round(item * 1000, 1) for item in seconds],
               **({"target": TARGETS["open_ms"]} if arm == "open" else {}), **about)  # fmt: skip


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
