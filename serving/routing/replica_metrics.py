"""The metrics of replicas as one page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def joined_metrics(texts: Mapping[str, str]) -> str:
    """Return the metrics of several replicas, each told apart by the label `replica`.

    Args:
        texts: Pages in Prometheus' text format by the replica's name.
    """
    registry = CollectorRegistry()
    registry.register(_Joined(texts))
    return generate_latest(registry).decode()


class _Joined(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._families: dict[str, Metric] = {}
        for replica, text in texts.items():
            for family in text_string_to_metric_families(text):
                joined = self._families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                joined.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica}) for sample in family.samples
                ]

    def collect(self) -> Iterable[Metric]:
        return self._families.values()
