"""HTTP requests as OpenTelemetry spans: under the caller's trace, and over all that a request sets off."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.admission import WORK_PATHS

tracer = trace.get_tracer("graft.http")
_propagator = TraceContextTextMapPropagator()

TRACE_RESPONSE = b"traceresponse"
"""W3C's header that tells a caller which trace its request is in."""


class RequestSpans:
    """ASGI middleware: a span per request of the API, from its first byte to the end of its answer.

    It names the route and never the path or the query, which may hold names of files.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not scope["path"].startswith(WORK_PATHS):
            await self._app(scope, receive, send)
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracer.start_as_current_span(
            scope["method"],
            context=_propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start" and span.is_recording():
                    _answered(span, scope, message["status"])
                    context = span.get_span_context()
                    told = f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
                    header = (TRACE_RESPONSE, f"{told}-{context.trace_flags:02x}".encode())
                    message = {**message, "headers": [*message["headers"], header]}
                await send(message)

            try:
                await self._app(scope, receive, noting)
            except Exception as error:  # a bug, answered 500 further out; its message may quote the request
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise


def _answered(span: Span, scope: Scope, status: int) -> None:
    """Note what became of a request, once its answer begins; the router has put its route into the scope."""
    span.set_attribute("http.response.status_code", status)
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
