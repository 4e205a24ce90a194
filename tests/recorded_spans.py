"""Spans that are kept in memory, for tests of what is in them."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class RecordedSpans:
    """The spans that a provider's tracers have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> list[ReadableSpan]:
        """Return them, in the order they ended."""
        return list(self._exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        """Return the only one of a name."""
        (found,) = [span for span in self.all() if span.name == name]
        return found

    def parent(self, name: str) -> str | None:
        """Return the name of a span's parent; None for a root."""
        span = self.one(name)
        if span.parent is None:
            return None
        (found,) = [other for other in self.all() if other.context.span_id == span.parent.span_id]
        assert found.context.trace_id == span.context.trace_id
        return found.name

    def text(self) -> str:
        """Return everything that they would show anybody."""
        return "\n".join(span.to_json() for span in self.all())
