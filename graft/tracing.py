"""Export of spans by OTLP, on where the environment names a collector: OpenTelemetry's own variables decide.

The packages make spans through OpenTelemetry's API, which does nothing by itself; here its SDK is set up, in
each process that makes any. Spans are sent in batches by a thread of their own. A collector that is away, or
slow, costs spans and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from threading import Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Either turns the export on."""
FLUSH_S = 2.0
"""Longest that the end of a process waits for its last spans to be sent."""

_setting_up = Lock()
_ours: TracerProvider | None = None


def otel_environment() -> dict[str, str]:
    """Return OpenTelemetry's variables of this process, or nothing where they do not ask for spans."""
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or os.environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(os.environ.get, ENDPOINTS)):
        return {}
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def export_spans(environment: Mapping[str, str], part: str) -> Callable[[], None]:
    """Send this process's spans to the collector; returns what sends those left at its end.

    A process has one provider of spans: one that its program has set up is used as it is, and one of ours
    stays for the next platform of the process.

    Args:
        environment: What `otel_environment` returned, here or in the process that starts this one.
        part: Part of the platform that the process is.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    global _ours
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with _setting_up:
        if _ours is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _ours = provider_of(OTLPSpanExporter(), part)
            trace.set_tracer_provider(_ours)
        provider = _ours
    return (lambda: flush(provider)) if provider is not None else _nothing


def provider_of(exporter: SpanExporter, part: str) -> TracerProvider:
    """Return a provider whose spans go to an exporter in batches, and say which part made them."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": "graft", "service.version": version("graft"), "graft.part": part})
    # The SDK's end at exit may take half a minute where the collector is away; ours is `flush`.
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def flush(provider: TracerProvider) -> None:
    """Send the spans that wait, for `FLUSH_S` at most."""
    # The SDK takes a time limit and does not keep it (opentelemetry-python #4568).
    sending = Thread(target=provider.force_flush, name="graft-flush-spans", daemon=True)
    sending.start()
    sending.join(FLUSH_S)


def _nothing() -> None:
    """Send nothing: the provider is not ours."""
