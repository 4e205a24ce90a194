"""Whether versions of an index can be built, switched to, rolled back and dropped while it is searched.

Arms: `switch` (one shard) and `switch_2_shards` (two, one epoch). Several tasks search all the time while
documents and records are added and replaced; a cycle builds a variant by copying (int8, half the dimensions)
and a real re-chunking with the packaged embedder, switches to each, rolls back, compacts, drops. Each answer
must be whole and of one version: its chunks cut as that version cuts, its cosines those of the vectors that
version stores, never the version before once a switch has returned. Query vectors are given: no query
embedding is timed, but passages are embedded on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.book_passages import load
from benchmarks.report import Report
from benchmarks.searches_under_change import KnownQueries, LegalChunks, Searches
from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.service import LocalRetrieval
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Record

PARTS = 4
"""Passages of a document, each of about 126 tokens."""
CHUNKINGS = (180, 60)
"""Tokens of a chunk: as configured, and after the re-chunking."""
TASKS = 4
PAUSE_S = 0.1
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True)
class Library:
    """What is written: documents, each with several contents, and records."""

    documents: list[list[str]]
    """By document, the contents it may have."""
    records: list[str]
    """Texts of records."""
    queries: list[str]
    """Search strings."""


def library_of(passages: Sequence[str], num_documents: int) -> Library:
    """Return documents of neighbouring passages, two contents each; records; queries from their words."""
    needed = num_documents * PARTS * 2
    contents = ["\n\n".join(passages[start : start + PARTS]) for start in range(0, needed, PARTS)]
    documents = [contents[number * 2 : number * 2 + 2] for number in range(num_documents)]
    records = list(passages[needed : needed + num_documents])
    queries = [" ".join(text.split()[30:38]) for text in passages[:needed:5]][:64]
    return Library(documents, records, queries)


async def write_for_ever(retrieval: LocalRetrieval | ShardedRetrieval, library: Library) -> None:
    """Replace a document or a record now and then."""
    choose, number = random.Random(5), 0
    while True:
        number += 1
        place = choose.randrange(len(library.documents))
        if number % 4 == 0:
            text = choose.choice(library.documents[place])
            await retrieval.add(f"d{place}.txt", text.encode(), metadata={"turn": number})
        else:
            await retrieval.upsert([Record(f"r{place}", choose.choice(library.records))])
        await asyncio.sleep(PAUSE_S)


async def cycles(
    report: Report,
    arm: str,
    retrieval: LocalRetrieval | ShardedRetrieval,
    searches: Searches,
    library: Library,
    num_cycles: int,
    idle_s: float,
) -> bool:
    """Report an arm; return whether no query failed and none was mixed."""
    added = [
        await retrieval.add(f"d{place}.txt", contents[0].encode())
        for place, contents in enumerate(library.documents)
    ]
    await retrieval.wait_ready([document.document_id for document in added], timeout_s=PATIENCE_S)
    await retrieval.upsert([Record(f"r{place}", text) for place, text in enumerate(library.records)])
    (first,) = await retrieval.versions()
    searches.specs[first.version_id] = first.spec
    searches.answers = first.version_id
    switch_ms: dict[str, list[float]] = {"switch": [], "roll_back": []}
    build_s: dict[str, list[float]] = {"copy": [], "rechunk": []}

    async def switch(kind: str, version_id: str) -> None:
        searches.answers = None
        started = time.perf_counter()
        await retrieval.switch(version_id)
        switch_ms[kind].append((time.perf_counter() - started) * 1000)
        searches.answers = version_id
        await asyncio.sleep(0.5)

    async def build(kind: str, change: VersionChange) -> str:
        searches.phase, started = f"build_{kind}", time.perf_counter()
        made = await retrieval.make_version(change)
        searches.specs[made.version_id] = made.spec
        await retrieval.wait_version(made.version_id, timeout_s=PATIENCE_S)
        build_s[kind].append(time.perf_counter() - started)
        searches.phase = "switching"
        return made.version_id

    searches.start(TASKS)
    try:
        for _ in range(num_cycles):
            searches.phase = "idle"
            await asyncio.sleep(idle_s)
            searches.phase = "writing"
            writer = asyncio.create_task(write_for_ever(retrieval, library))
            try:
                await asyncio.sleep(idle_s)
                variant = await build("copy", VersionChange(vectors="int8", dim=first.spec.model_dim // 2))
                await switch("switch", variant)
                await switch("roll_back", first.version_id)
                recut = await build("rechunk", VersionChange(chunk_tokens=CHUNKINGS[1]))
                await switch("switch", recut)
                await retrieval.compact()
                await switch("roll_back", first.version_id)
                for version in (variant, recut):
                    await retrieval.drop_version(version)
            finally:
                writer.cancel()
                (ended,) = await asyncio.gather(writer, return_exceptions=True)
                if isinstance(ended, Exception):
                    raise ended
    finally:
        await searches.stop()
    _report(report, arm, searches, switch_ms, build_s)
    return not searches.failed and not searches.mixed


def _report(
    report: Report,
    arm: str,
    searches: Searches,
    switch_ms: dict[str, list[float]],
    build_s: dict[str, list[float]],
) -> None:
    total = sum(map(len, searches.seconds.values()))
    report.add(arm, "failed_queries", len(searches.failed), "queries", target=0, better="lower",
               of=total, what=searches.failed[:3])  # fmt: skip
    report.add(arm, "mixed_results", len(searches.mixed), "results", target=0, better="lower", of=total,
               checked_cosines=searches.num_checked_scores, answers_by_version=dict(searches.by_version),
               what=searches.mixed[:3])  # fmt: skip
    for kind, values in switch_ms.items():
        report.add(arm, f"{kind}_ms", _percentile(values, 50), "ms", better="lower",
                   slowest_ms=round(max(values), 1), times=len(values))  # fmt: skip
    idle = _percentile([1000 * one for one in searches.seconds["idle"]], 99)
    for phase in ("writing", "build_copy", "build_rechunk", "switching"):
        values = [1000 * one for one in searches.seconds[phase]]
        if not values:
            continue
        p99, built = _percentile(values, 99), build_s.get(phase.removeprefix("build_"), [])
        report.add(arm, f"{phase}_p99_ratio", round(p99 / idle, 2), "ratio", better="lower", p99_ms=p99,
                   idle_p99_ms=idle, p50_ms=_percentile(values, 50), searches=len(values),
                   build_s=[round(one, 1) for one in built])  # fmt: skip


def _percentile(values: Sequence[float], share: float) -> float:
    return round(float(np.percentile(np.asarray(values), share)), 2)


async def run(report: Report, library: Library, num_cycles: int, idle_s: float) -> bool:
    """Report both arms; return whether every answer was whole and of one version."""
    whole = True
    config = RetrievalConfig()
    real = SentenceTransformerEmbedder(config)
    embedder = await KnownQueries.of(real, library.queries)
    legal = LegalChunks([text for contents in library.documents for text in contents], CHUNKINGS)
    with tempfile.TemporaryDirectory() as folder:
        async with await LocalRetrieval.open(Path(folder), config, embedder) as retrieval:
            searches = Searches(retrieval, [retrieval.reader], embedder.vectors, legal)
            whole &= await cycles(report, "switch", retrieval, searches, library, num_cycles, idle_s)
    with tempfile.TemporaryDirectory() as folder:
        config = RetrievalConfig(num_shards=2)
        async with await ShardedRetrieval.open(Path(folder), config, embedder) as sharded:
            searches = Searches(sharded, sharded.shards, embedder.vectors, legal)
            whole &= await cycles(report, "switch_2_shards", sharded, searches, library, num_cycles, idle_s)
    return whole


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the books")
    parser.add_argument("--quick", action="store_true", help="one cycle on 24 documents, under 3 minutes")
    options = parser.parse_args()
    num_documents, num_cycles, idle_s = (24, 1, 2.0) if options.quick else (80, 4, 4.0)
    books = load(options.data, num_documents * (PARTS * 2 + 1))
    if books is None:
        parser.exit(1, f"the books are not in {options.data}; give their folder with --data\n")
    report = Report("index_versions", quick=options.quick)
    whole = asyncio.run(run(report, library_of(books.texts, num_documents), num_cycles, idle_s))
    report.save()
    if not whole:
        parser.exit(1, "a query failed or was answered by two versions; see the rows above\n")


if __name__ == "__main__":
    main()
