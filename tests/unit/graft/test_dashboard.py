"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from retrieval.metrics import RetrievalMetrics
from serving.chunk_kv.store_stats import StoreStats
from serving.metrics import GeneratorMetrics

DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "grafana.json"


def series(registry: CollectorRegistry) -> set[str]:
    """Return the names under which Prometheus stores a registry's metrics."""
    names = set()
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_series_of_the_dashboard_is_counted() -> None:
    generator = GeneratorMetrics()
    generator.stored(StoreStats())
    known = series(generator._registry) | series(RetrievalMetrics()._registry) | {"graft_part_up"}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"graft_\w+", target["expr"])
    }
    assert len(panels) == 16
    assert asked <= known
    for needed in ("ttft_seconds_bucket", "inter_token_seconds_bucket", "fairness_gap_tokens", "blend_kl"):
        assert f"graft_generator_{needed}" in asked


def test_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
