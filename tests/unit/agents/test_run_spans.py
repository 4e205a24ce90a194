"""A run and its nodes as spans: nested, named, and without a word of what was asked or found."""

from __future__ import annotations

from typing import Any

import pytest
from fakes_agents import MemoryRetriever, passage
from fakes_serving import ScriptedGenerator
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from recorded_spans import RecordedSpans

from agents import Pipeline
from retrieval.errors import IndexUnavailable

TEXT = "PagedAttention was created at UC Berkeley in 2023."
QUESTION = "Where was PagedAttention created?"


class Witness(MemoryRetriever):
    """Remembers the span it was asked under."""

    asked_under: Any = None

    async def search(self, requests):
        self.asked_under = trace.get_current_span().get_span_context()
        return await super().search(requests)


async def test_nodes_are_under_their_run_and_over_what_they_search(spans: RecordedSpans):
    witness = Witness([passage(TEXT)])
    pipeline = Pipeline("rag", witness, ScriptedGenerator("UC Berkeley [1].", max_model_len=10_000))
    with spans.provider.get_tracer("caller").start_as_current_span("caller"):
        result = await pipeline.invoke(QUESTION, tenant="north")
    assert result.stop_reason == "answered"
    run = spans.one("invoke_workflow rag")
    told = dict(run.attributes or {})
    assert told["gen_ai.workflow.name"] == "rag"
    assert told["graft.run_id"] == result.run_id
    assert told["graft.tenant"] == "north"
    assert told["graft.stop_reason"] == "answered"
    assert told["gen_ai.usage.input_tokens"] == result.usage.prompt_tokens
    assert told["gen_ai.usage.output_tokens"] == result.usage.completion_tokens
    assert spans.parent("invoke_workflow rag") == "caller"
    for node in ("begin", "retrieve", "generate", "cite", "finalize"):
        assert spans.parent(f"node {node}") == "invoke_workflow rag"
    assert witness.asked_under == spans.one("node retrieve").context


async def test_a_run_shows_no_text(spans: RecordedSpans):
    retriever = MemoryRetriever([passage(TEXT, document="ada.md")])
    pipeline = Pipeline("multi_hop", retriever, ScriptedGenerator("UC Berkeley [1].", max_model_len=10_000))
    result = await pipeline.invoke(QUESTION)
    assert result.answer
    shown = spans.text()
    assert "node act" in shown
    for words in ("PagedAttention", "Berkeley", "ada.md"):
        assert words not in shown


@pytest.mark.parametrize("error", [IndexUnavailable(f"no shard for {QUESTION}"), KeyError(QUESTION)])
async def test_a_failed_run_is_an_error_named_by_class_alone(spans: RecordedSpans, error: Exception):
    pipeline = Pipeline("rag", MemoryRetriever([], error=error), ScriptedGenerator("x"))
    assert (await pipeline.invoke(QUESTION)).stop_reason == "error"
    for name in ("node retrieve", "invoke_workflow rag"):
        span = spans.one(name)
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == type(error).__name__
    assert "PagedAttention" not in spans.text()
