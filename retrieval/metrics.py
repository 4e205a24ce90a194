"""What an index counts and holds, as Prometheus text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from retrieval.admin import SegmentReport
from retrieval.types import SearchResult


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """What a shard holds and has to do."""

    segments: Sequence[SegmentReport]
    """Its part of every version in memory."""
    num_under_way: int
    """Documents that wait for ingestion or are being worked on, of all libraries and tenants."""


class RetrievalMetrics:
    """Counts searches and shows what shards report.

    It has a registry of its own: several indexes in one process, as in tests, do not clash.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._searches = self._counter("searches", "Searches answered.")
        self._partial = self._counter("partial_results", "Answers that lack a shard.")
        self._failed = self._counter("failed_searches", "Searches that ended with an error.")
        self._queued = self._gauge("queued_searches", "Searches that wait for their turn.")
        self._up = self._gauge("shard_up", "Whether a shard answers.", "shard")
        self._under_way = self._gauge("ingest_queue", "Documents not ready or failed yet.", "shard")
        self._compactions = self._gauge(
            "compactions", "Base segments built since the shard was opened.", "shard", "version"
        )
        self._rows = self._gauge("rows", "Live chunks.", "shard", "version")
        self._delta = self._gauge("delta_rows", "Rows newer than the base segment.", "shard", "version")
        self._dead = self._gauge("dead_rows", "Rows the next compaction drops.", "shard", "version")
        self._recall = self._gauge(
            "served_recall", "recall@10 of approximate searches repeated exactly.", "shard", "version"
        )
        self._recall_high = self._gauge(
            "served_recall_high", "Upper end of its 95 % interval.", "shard", "version"
        )
        self._recall_low = self._gauge("served_recall_low", "Lower end of it.", "shard", "version")
        self._alarm = self._gauge("recall_alarm", "Whether it is below the floor.", "shard", "version")
        self._by_version = {
            self._compactions: "num_compactions",
            self._rows: "num_rows",
            self._delta: "num_delta_rows",
            self._dead: "num_dead_rows",
        }
        self._of_recall = {
            self._recall: "recall",
            self._recall_low: "low",
            self._recall_high: "high",
            self._alarm: "alarm",
        }

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"graft_retrieval_{name}", text, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"graft_retrieval_{name}", text, labels, registry=self._registry)

    def searched(self, results: Sequence[SearchResult]) -> None:
        """Count searches that were answered."""
        self._searches.inc(len(results))
        self._partial.inc(sum(result.partial for result in results))

    def failed(self, num_searches: int) -> None:
        """Count searches that were not."""
        self._failed.inc(num_searches)

    def prometheus_text(self, num_queued: int, loads: Mapping[str, ShardLoad | None]) -> str:
        """Return everything in Prometheus' text format.

        Args:
            num_queued: Searches that wait now.
            loads: By shard: what it reported just now; None for one that does not answer.
        """
        self._queued.set(num_queued)
        for gauge in (self._up, self._under_way, *self._by_version, *self._of_recall):
            gauge.clear()  # Versions and shards go.
        for shard, load in loads.items():
            self._up.labels(shard).set(load is not None)
            if load is None:
                continue
            self._under_way.labels(shard).set(load.num_under_way)
            for report in load.segments:
                for gauge, name in self._by_version.items():
                    gauge.labels(shard, report.version_id).set(getattr(report, name))
                for gauge, name in self._of_recall.items() if report.served_recall else ():
                    gauge.labels(shard, report.version_id).set(getattr(report.served_recall, name))
        return generate_latest(self._registry).decode()
