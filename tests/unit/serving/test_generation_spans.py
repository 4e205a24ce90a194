"""A generation as a span: numbers and names, under whoever asked, in whatever process."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from letter_engine import LetterEngine, Start, ask, collect, until
from opentelemetry.trace import SpanKind, StatusCode
from recorded_spans import RecordedSpans

from serving.errors import GeneratorUnavailable
from serving.sessions import Sessions
from serving.spans import trace_context

SECRET = "the patient is Ada"


async def generation(spans: RecordedSpans):
    await until(lambda: bool(spans.all()))
    (span,) = spans.all()
    return span


async def test_a_generation_tells_its_model_its_tokens_and_its_times(start: Start, spans: RecordedSpans):
    generator = await start(LetterEngine())
    await collect(generator, ask(5, text=SECRET, tenant="north"))
    span = await generation(spans)
    assert span.name == f"chat {generator.config.model}"
    assert span.kind is SpanKind.SERVER
    told = dict(span.attributes or {})
    assert told["gen_ai.request.model"] == generator.config.model
    assert told["gen_ai.request.max_tokens"] == 5
    assert told["gen_ai.usage.output_tokens"] == 5
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.cache_read.input_tokens"] == 0
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert told["graft.reuse.mode"] == "exact"
    assert told["graft.tenant"] == "north"
    assert 0 <= told["gen_ai.latency.time_in_queue"] <= told["gen_ai.response.time_to_first_chunk"]
    assert span.status.status_code is StatusCode.UNSET


async def test_a_generation_shows_no_text(start: Start, spans: RecordedSpans):
    await collect(await start(LetterEngine()), ask(50, text=SECRET))
    assert "Ada" not in spans.text()
    assert "aaaa" not in spans.text()


async def test_a_cancelled_generation_says_so_and_is_no_error(start: Start, spans: RecordedSpans):
    generator = await start(LetterEngine())
    async with aclosing(generator.generate(ask(100_000))) as chunks:
        await anext(chunks)
    span = await generation(spans)
    assert (span.attributes or {})["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert span.status.status_code is StatusCode.UNSET


async def test_a_failed_generation_is_an_error_without_its_message(start: Start, spans: RecordedSpans):
    generator = await start(LetterEngine(breaks_at_step=3))
    with pytest.raises(GeneratorUnavailable, match="out of ink"):
        await collect(generator, ask(50))
    span = await generation(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "GeneratorUnavailable"
    assert "out of ink" not in spans.text()


async def test_requests_of_a_session_are_each_under_the_span_that_asked(start: Start, spans: RecordedSpans):
    sessions = Sessions(await start(LetterEngine()))
    session_id = sessions.open()
    tracer = spans.provider.get_tracer("caller")
    for number in range(2):
        with tracer.start_as_current_span(f"caller {number}"):
            carried = trace_context()
        assert set(carried) == {"traceparent"}
        sessions.submit(session_id, number, ask(2), carried)
    sessions.submit(session_id, 2, ask(2), trace_context())
    sessions.submit(session_id, 3, ask(2), {"traceparent": "no trace"})
    polling = asyncio.create_task(_poll(sessions, session_id))
    await until(lambda: len(spans.all()) == 6)
    polling.cancel()
    callers = [span.context for span in spans.all() if span.name.startswith("caller")]
    asked = [span for span in spans.all() if span.name.startswith("chat")]
    under = {(span.parent.trace_id, span.parent.span_id) for span in asked if span.parent}
    assert under == {(context.trace_id, context.span_id) for context in callers}
    assert sum(span.parent is None for span in asked) == 2


async def _poll(sessions: Sessions, session_id: str) -> None:
    while True:
        await sessions.poll(session_id)
