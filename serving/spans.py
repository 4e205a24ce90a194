"""Generations as OpenTelemetry spans, and the trace they belong to carried from process to process.

Only the API is used here: without an SDK, which is the platform's to set up, all of it does nothing. Spans
hold numbers and names, never text of a prompt or of an answer.
"""

from __future__ import annotations

import sys
from contextvars import Context, copy_context

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.types import FinishReason, GenerateRequest, TokenUsage

tracer = trace.get_tracer("graft.serving")
_propagator = TraceContextTextMapPropagator()

TraceContext = dict[str, str]
"""The W3C headers `traceparent` and `tracestate` of the span that asks; empty where there is none."""


def trace_context() -> TraceContext:
    """Return the current span, to be carried to another process."""
    carrier: TraceContext = {}
    _propagator.inject(carrier)
    return carrier


def context_in(asking: TraceContext) -> Context:
    """Return a context for a task whose spans belong under a span of another process."""
    context = copy_context()
    if asking:
        context.run(otel_context.attach, _propagator.extract(asking))
    return context


class GenerationSpan:
    """One generation, from its acceptance to its end.

    It is never the current span: an async generator shares its context with whoever reads it.
    """

    def __init__(self, request: GenerateRequest, model: str) -> None:
        """Begin it.

        Args:
            request: What was accepted.
            model: What serves it.
        """
        sampling = request.sampling
        self._span = tracer.start_span(
            f"chat {model}",
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": model,
                "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.request.top_p": sampling.top_p,
                "graft.tenant": request.tenant,
                "graft.priority": request.priority,
            },
        )

    def entered(self, seconds: float) -> None:
        """Note that it got a slot of the engine, `seconds` after it was accepted."""
        self._span.set_attribute("gen_ai.latency.time_in_queue", seconds)

    def first_token(self, seconds: float) -> None:
        """Note its first token, `seconds` after it was accepted."""
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def ended(self, reason: FinishReason | None, usage: TokenUsage, weights: str | None) -> None:
        """End it, while the exception that ends it, if any, is under way.

        Args:
            reason: Why it ended; None for a failure.
            usage: What it cost.
            weights: What wrote it, where anything did.
        """
        span = self._span
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                    "graft.usage.blended_tokens": usage.blended_tokens,
                    "graft.usage.repaired_tokens": usage.repaired_tokens,
                    "graft.reuse.mode": usage.mode,
                }
            )
            if weights is not None:
                span.set_attribute("graft.weights", weights)
            if reason is not None:
                span.set_attribute("gen_ai.response.finish_reasons", (reason,))
            elif (error := sys.exception()) is not None:
                # Its class alone: a message may quote the prompt.
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
        span.end()
