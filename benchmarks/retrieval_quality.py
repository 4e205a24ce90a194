"""How well searches find: nDCG@10 and recall@10 of each leg and of what is made of them, on six test sets.

Arms: `dense`, `lexical`, `hybrid` (convex combination), `hybrid_rrf`, `hybrid_maxsim` (late interaction
over the embedder's own token vectors). Every arm searches the same index through the same call; a passage
is one chunk. No label of these sets was used to choose a weight. `mtrag` asks what the agents ask for a
follow-up question, `mtrag-last-turn` the question alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks.collections import COLLECTIONS, Collection, load
from benchmarks.rank_metrics import mean, ndcg, recall
from benchmarks.report import Report
from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.service import LocalRetrieval
from retrieval.types import Record, SearchRequest

K = 10
ARMS: dict[str, SearchRequest] = {
    "dense": SearchRequest("?", K, mode="dense", rerank="none"),
    "lexical": SearchRequest("?", K, mode="lexical", rerank="none"),
    "hybrid": SearchRequest("?", K, rerank="none"),
    "hybrid_rrf": SearchRequest("?", K, fusion="rrf", rerank="none"),
    "hybrid_maxsim": SearchRequest("?", K, rerank="maxsim"),
}
TARGETS: dict[tuple[str, str], float] = {
    ("scifact", "dense"): 0.640,
    ("scifact", "lexical"): 0.66,
    ("scifact", "hybrid"): 0.72,
    ("scifact", "hybrid_maxsim"): 0.735,
    ("squad2", "hybrid_maxsim"): 0.94,
}
"""nDCG@10 aimed at."""
QUICK = ("squad2", "mtrag")
QUICK_QUERIES = 100
_BATCH = 64


async def measure(report: Report, collection: Collection, config: RetrievalConfig) -> None:
    """Index one collection and report every arm on it."""
    embedder = SentenceTransformerEmbedder(config)
    with tempfile.TemporaryDirectory() as folder:
        async with await LocalRetrieval.open(Path(folder), config, embedder) as retrieval:
            started = perf_counter()
            names = list(collection.passages)
            for start in range(0, len(names), 256):
                await retrieval.upsert(
                    [Record(name, collection.passages[name]) for name in names[start : start + 256]]
                )
            index_s = perf_counter() - started
            for arm, asked in ARMS.items():
                await _measure_arm(report, collection, retrieval, arm, asked, index_s)
    await embedder.aclose()


async def _measure_arm(
    report: Report,
    collection: Collection,
    retrieval: LocalRetrieval,
    arm: str,
    asked: SearchRequest,
    index_s: float,
) -> None:
    scores, recalls, hits = [], [], []
    for start in range(0, len(collection.queries), _BATCH):
        queries = collection.queries[start : start + _BATCH]
        results = await retrieval.search([replace(asked, query=query.text) for query in queries])
        for query, result in zip(queries, results, strict=True):
            skipped = [stage for stage in result.stages if stage.skipped and stage.name == "maxsim"]
            if result.partial or (arm == "hybrid_maxsim" and skipped):
                raise RuntimeError(f"{arm} was not measured: {result.stages}")
            ranked = [passage.document for passage in result.passages]
            scores.append(ndcg(ranked, query.gains, K))
            recalls.append(recall(ranked, query.gains, K))
            hits.append(recall(ranked, dict.fromkeys(ranked[:1], 0.0) | query.gains, 1) > 0)
    about = {"collection": collection.name, "queries": len(scores), "passages": len(collection.passages)}
    report.add(
        arm,
        "ndcg@10",
        round(mean(scores), 4),
        "score",
        target=TARGETS.get((collection.name, arm)),
        better="higher",
        hit_at_1=round(mean(hits), 4),
        index_s=round(index_s, 1),
        **about,
    )
    report.add(arm, "recall@10", round(mean(recalls), 4), "share", **about)


async def run(data: Path, quick: bool) -> None:
    """Measure every collection that is there."""
    report = Report("retrieval_quality", quick=quick)
    config = RetrievalConfig(maxsim_budget_ms=60_000.0)
    measured = 0
    for name in QUICK if quick else COLLECTIONS:
        collection = await asyncio.to_thread(load, name, data)
        if collection is None:
            print(f"{name}: left out, its files are not in {data}")
            continue
        if quick:
            collection = replace(collection, queries=collection.queries[:QUICK_QUERIES])
        await measure(report, collection, config)
        measured += 1
    if measured:
        report.save()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of test sets")
    parser.add_argument("--quick", action="store_true", help="two small sets, under 3 minutes")
    options = parser.parse_args()
    asyncio.run(run(options.data, options.quick))


if __name__ == "__main__":
    main()
