"""Searches as OpenTelemetry spans; without an SDK, which is the platform's to set up, they are nothing.

Spans hold numbers and names, never a query or text of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from retrieval.types import SearchRequest, SearchResult

tracer = trace.get_tracer("graft.retrieval")


@contextmanager
def search_span(requests: Sequence[SearchRequest]) -> Iterator[Callable[[Sequence[SearchResult]], None]]:
    """Span a search of some queries; what it yields is told the results."""
    with tracer.start_as_current_span(
        "retrieval", record_exception=False, set_status_on_exception=False
    ) as span:

        def found(results: Sequence[SearchResult]) -> None:
            if span.is_recording():
                span.set_attributes(
                    {
                        "graft.index_version": results[0].index_version,
                        "graft.retrieval.num_hits": sum(len(result.hits) for result in results),
                        "graft.retrieval.is_partial": any(result.partial for result in results),
                        "graft.retrieval.embed_ms": max(result.embed_ms for result in results),
                        "graft.retrieval.search_ms": max(result.search_ms for result in results),
                    }
                )

        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": "retrieval",
                    "graft.retrieval.num_queries": len(requests),
                    "graft.retrieval.mode": requests[0].mode,
                    "graft.retrieval.k": requests[0].k,
                }
            )
        try:
            yield found
        except BaseException as error:
            # Its class alone: a message may quote the query.
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
