from __future__ import annotations

from typing import Any, cast

import pytest
from httpx import ASGITransport, AsyncClient
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from recorded_spans import RecordedSpans

from graft.access import Access
from graft.config import ServerConfig
from graft.sdk import AsyncGraft
from graft.server import create_app
from retrieval.errors import IndexUnavailable, UnknownDocument

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Documents:
    """A platform that has no documents, and notes under which span it was asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked_under: Any = None

    async def libraries(self) -> list[Any]:
        self.asked_under = trace.get_current_span().get_span_context()
        return []

    async def document(self, document_id: str) -> Any:
        raise self.error


def client_of(error: Exception, access: Access | None = None) -> tuple[AsyncClient, Documents]:
    graft = Documents(error)
    app = create_app(cast(AsyncGraft, graft), access or Access(), ServerConfig())
    transport = ASGITransport(app, raise_app_exceptions=False)
    return AsyncClient(transport=transport, base_url="http://127.0.0.1"), graft


async def test_a_request_joins_its_callers_trace_and_tells_which_that_is(spans: RecordedSpans):
    client, graft = client_of(UnknownDocument("x"))
    async with client:
        answer = await client.get("/v1/libraries", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    span = spans.one("GET /v1/libraries")
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert graft.asked_under == span.context
    told = dict(span.attributes or {})
    assert told["http.request.method"] == "GET"
    assert told["http.route"] == "/v1/libraries"
    assert told["http.response.status_code"] == 200


async def test_a_request_without_a_trace_begins_one(spans: RecordedSpans):
    client, _ = client_of(UnknownDocument("x"))
    async with client:
        for headers in ({}, {"traceparent": "nonsense"}):
            await client.get("/v1/libraries", headers=headers)
    assert [span.parent for span in spans.all()] == [None, None]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownDocument("no ada.md"), 404, StatusCode.UNSET),
        (IndexUnavailable("no ada.md"), 503, StatusCode.ERROR),
    ],
)
async def test_a_span_names_the_route_and_not_what_was_asked_for(spans: RecordedSpans, error, status, code):
    client, _ = client_of(error)
    async with client:
        assert (await client.get("/v1/documents/ada.md?name=ada.md")).status_code == status
    span = spans.one("GET /v1/documents/{document_id}")
    assert (span.attributes or {})["http.response.status_code"] == status
    assert span.status.status_code is code
    assert "ada" not in spans.text()


@pytest.mark.filterwarnings("ignore")
async def test_a_bug_is_an_error_named_by_class_alone(spans: RecordedSpans):
    client, _ = client_of(KeyError("ada"))
    async with client:
        assert (await client.get("/v1/documents/x")).status_code == 500
    (span,) = spans.all()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "KeyError"
    assert "ada" not in spans.text()


async def test_who_may_not_call_is_in_nobodys_trace(spans: RecordedSpans):
    client, _ = client_of(UnknownDocument("x"), Access("secret"))
    async with client:
        assert (await client.get("/v1/libraries")).status_code == 401
        assert (await client.get("/healthz")).status_code in (200, 500)
    assert spans.all() == []


async def test_without_an_sdk_nothing_is_told():
    client, _ = client_of(UnknownDocument("x"))
    async with client:
        answer = await client.get("/v1/libraries", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert "traceresponse" not in answer.headers
