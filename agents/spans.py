"""Runs and their nodes as OpenTelemetry spans; without an SDK, which is the platform's to set up, nothing.

Spans hold numbers and names, never a question, an answer or text of a document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from langgraph.runtime import Runtime
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from agents.context import RunContext
from agents.state import RunResult

tracer = trace.get_tracer("graft.agents")

Node = TypeVar("Node", bound=Callable[..., Awaitable[dict[str, Any]]])


@contextmanager
def run_span(graph: str, context: RunContext, thread_id: str | None) -> Iterator[Callable[[RunResult], None]]:
    """Span a run; what it yields is told the result.

    Args:
        graph: The graph's name.
        context: The run's.
        thread_id: Thread it continues; None for a run that is not kept.
    """
    with tracer.start_as_current_span(
        f"invoke_workflow {graph}", record_exception=False, set_status_on_exception=False
    ) as span:

        def finished(result: RunResult) -> None:
            if not span.is_recording():
                return
            usage = result.usage
            span.set_attributes(
                {
                    "graft.stop_reason": result.stop_reason,
                    "graft.num_citations": len(result.citations),
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                }
            )
            if result.stop_reason == "error":
                span.set_attribute("error.type", result.error_kind or "")
                span.set_status(Status(StatusCode.ERROR))

        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": "invoke_workflow",
                    "gen_ai.workflow.name": graph,
                    "graft.run_id": context.run_id,
                    "graft.release": context.release,
                    "graft.tenant": context.tenant,
                }
            )
            if thread_id is not None:
                span.set_attribute("gen_ai.conversation.id", thread_id)
        yield finished


def traced(node: Node) -> Node:
    """Return a node that is a span under its run, and over what it searches and generates."""

    @wraps(node)
    async def in_span(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        with tracer.start_as_current_span(
            f"node {node.__name__}", record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                return await node(state, runtime)
            except BaseException as error:
                # Its class alone: a message may quote what was asked.
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    return cast(Node, in_span)
