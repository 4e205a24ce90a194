"""What a generator counts, as numbers and as Prometheus text."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.chunk_kv.quality_gate import QualityGate
from serving.chunk_kv.store_stats import StoreStats
from serving.driver import EngineLoad
from serving.types import FinishReason, GeneratorStats, TokenUsage

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PACE_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
DURATION_WEIGHT = 0.2
"""Weight of the newest request in the moving mean of durations."""


class GeneratorMetrics:
    """Counts requests and tokens of one generator.

    It has a registry of its own: several generators in one process, as in tests, do not clash.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = self._gauge("running", "Requests that hold KV blocks.")
        self._waiting = self._gauge("waiting", "Requests accepted and not started.")
        self._kv_usage = self._gauge("kv_usage", "Share of KV blocks that requests under way hold.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of ended requests.")
        self._cached_tokens = self._counter("cached_tokens", "Prompt tokens with the KV of an equal prefix.")
        self._blended_tokens = self._counter("blended_tokens", "Prompt tokens with KV of the chunk store.")
        self._repaired_tokens = self._counter(
            "repaired_tokens", "Prompt tokens computed up to the last chunk of blended prompts."
        )
        self._completion_tokens = self._counter("completion_tokens", "Tokens generated.")
        self._blend_checks = self._counter("blend_checks", "Blended answers that were also made exactly.")
        self._blend_kl = self._gauge(
            "blend_kl", "Mean divergence of the first token in the last checks, nats."
        )
        self._blend_agreement = self._gauge("blend_agreement", "Mean share of equal tokens in them.")
        self._blend_citations = self._gauge(
            "blend_citation_overlap", "Mean share of cited passages that both answers cite."
        )
        self._blend_closed = self._gauge("blend_closed", "1 once blending was turned off by its checks.")
        self._requests = Counter(
            "graft_generator_requests",
            "Ended requests by reason.",
            ["finish_reason"],
            registry=self._registry,
        )
        self._rejected = self._counter("rejected", "Requests refused because the queue was full.")
        self._gap = self._gauge("fairness_gap_tokens", "Tokens of service between the tenants that wait now.")
        self._queued = Histogram(
            "graft_generator_queue_seconds",
            "Time from acceptance to a slot of the engine.",
            buckets=TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._ttft = Histogram(
            "graft_generator_ttft_seconds",
            "Time from acceptance to the first token.",
            buckets=TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._pace = Histogram(
            "graft_generator_inter_token_seconds",
            "Time between two tokens of an answer, its mean over each request.",
            buckets=PACE_BUCKETS_S,
            registry=self._registry,
        )
        self._duration = Histogram(
            "graft_generator_duration_seconds",
            "Time from acceptance to the end.",
            buckets=DURATION_BUCKETS_S,
            registry=self._registry,
        )
        self._store = _StoreCollector()
        self._registry.register(self._store)
        self._num_finished = 0
        self._num_cancelled = 0
        self._usage = TokenUsage()
        self.mean_duration_s = 0.0
        """Moving mean of the durations of requests that ended by themselves; 0 before the first."""

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"graft_generator_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"graft_generator_{name}", text, registry=self._registry)

    def entered(self, seconds: float) -> None:
        """Count a request that got a slot of the engine, `seconds` after it was accepted."""
        self._queued.observe(seconds)

    def fairness_gap(self, tokens: float) -> None:
        """Tell by how many tokens of service the tenants that wait now are apart."""
        self._gap.set(tokens)

    def first_token(self, seconds: float) -> None:
        """Count a first token, `seconds` after its request was accepted."""
        self._ttft.observe(seconds)

    def paced(self, seconds: float, num_tokens: int) -> None:
        """Count an answer that took `seconds` from its first token to its last."""
        if num_tokens > 1:
            self._pace.observe(seconds / (num_tokens - 1))

    def rejected(self) -> None:
        """Count a request refused because the queue was full."""
        self._rejected.inc()

    def stored(self, stats: StoreStats | None) -> None:
        """Tell what the chunk store holds and did; None where there is none."""
        self._store.stats = stats

    def checked(self, gate: QualityGate) -> None:
        """Count a check of a blended answer."""
        self._blend_checks.inc()
        self._blend_kl.set(gate.mean_kl)
        self._blend_agreement.set(gate.mean_agreement)
        self._blend_citations.set(gate.mean_citation_overlap)
        self._blend_closed.set(gate.closed_reason is not None)

    def ended(self, reason: FinishReason | None, usage: TokenUsage, seconds: float) -> None:
        """Count a request that ended; None as reason for one that an engine failure ended."""
        self._requests.labels(reason or "error").inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._blended_tokens.inc(usage.blended_tokens)
        self._repaired_tokens.inc(usage.repaired_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._duration.observe(seconds)
        self._usage += usage
        if reason in ("stop", "length"):
            self._num_finished += 1
            weight = DURATION_WEIGHT if self.mean_duration_s else 1.0
            self.mean_duration_s += weight * (seconds - self.mean_duration_s)
        elif reason is not None:
            self._num_cancelled += 1

    def stats(self, load: EngineLoad) -> GeneratorStats:
        """Return the load now, as given, and the totals since start."""
        return GeneratorStats(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_finished=self._num_finished,
            num_cancelled=self._num_cancelled,
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=self._usage.cached_tokens,
            completion_tokens=self._usage.completion_tokens,
            kv_usage=load.kv_usage,
        )

    def prometheus_text(self, load: EngineLoad) -> str:
        """Return the load now, as given, and all that was counted, in Prometheus' text format."""
        self._running.set(load.num_running)
        self._waiting.set(load.num_waiting)
        self._kv_usage.set(math.nan if load.kv_usage is None else load.kv_usage)
        return generate_latest(self._registry).decode()


class _StoreCollector(Collector):
    """Gives Prometheus what a chunk store counts by itself."""

    stats: StoreStats | None = None

    def collect(self) -> Iterable[Metric]:
        stats = self.stats
        if stats is None:
            return
        chunks = GaugeMetricFamily("graft_chunk_kv_chunks", "Chunks whose KV is stored.", labels=["tier"])
        num_bytes = GaugeMetricFamily("graft_chunk_kv_bytes", "Bytes of it.", labels=["tier"])
        reads = CounterMetricFamily(
            "graft_chunk_kv_reads", "Reads by where they were found.", labels=["tier"]
        )
        lost = CounterMetricFamily("graft_chunk_kv_lost", "Chunks that a tier did not keep.", labels=["why"])
        for tier, held, size, hits in (
            ("memory", stats.memory_chunks, stats.memory_bytes, stats.memory_hits),
            ("disk", stats.disk_chunks, stats.disk_bytes, stats.disk_hits),
        ):
            chunks.add_metric([tier], held)
            num_bytes.add_metric([tier], size)
            reads.add_metric([tier], hits)
        reads.add_metric(["none"], stats.misses)
        for why in ("evicted", "not_admitted", "corrupt", "disk_errors"):
            lost.add_metric([why], getattr(stats, why))
        yield from (chunks, num_bytes, reads, lost)
