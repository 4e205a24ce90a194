from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from graft import tracing
from graft.tracing import flush, otel_environment, provider_of

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in otel_environment():
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "papers"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_turns_spans_on(monkeypatch: pytest.MonkeyPatch, variables, is_on):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert otel_environment() == (variables if is_on else {})


def test_spans_say_who_made_them_and_the_environment_may_name_it(monkeypatch: pytest.MonkeyPatch):
    names = []
    for service in (None, "papers"):
        if service:
            monkeypatch.setenv("OTEL_SERVICE_NAME", service)
        exporter = InMemorySpanExporter()
        provider = provider_of(exporter, "generator")
        provider.get_tracer("x").start_span("span").end()
        flush(provider)
        (span,) = exporter.get_finished_spans()
        assert span.resource.attributes["graft.part"] == "generator"
        names.append(span.resource.attributes["service.name"])
        provider.shutdown()
    assert names == ["graft", "papers"]


class Stuck(SpanExporter):
    """A collector that accepts a connection and answers no more."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.num_batches = 0

    def export(self, spans) -> SpanExportResult:
        self.num_batches += 1
        self.go.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Leave nothing."""


@pytest.mark.timeout(60)
def test_a_collector_that_hangs_holds_up_neither_spans_nor_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "FLUSH_S", 0.05)
    exporter = Stuck()
    provider = provider_of(exporter, "server")
    tracer = provider.get_tracer("x")
    for _ in range(5_000):  # more than the SDK keeps
        tracer.start_span("span").end()
    flush(provider)
    assert exporter.num_batches == 1
    exporter.go.set()
    provider.shutdown()


def test_a_provider_of_the_program_is_left_alone():
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from graft.tracing import export_spans
theirs = TracerProvider()
trace.set_tracer_provider(theirs)
export_spans({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "server")()
assert trace.get_tracer_provider() is theirs
assert not theirs._active_span_processor._span_processors
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
