"""What stands in front of every request: authorisation, size limits, and a bound on runs under way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.errors import InvalidQuestion
from graft.access import Access
from graft.drain import Drain
from graft.errors import AccessDenied, ShuttingDown
from graft.wire import BUSY, OURS, error_to_json, status_of
from serving.errors import Overloaded

T = TypeVar("T")

CLIENT_LEFT = 499
"""Status of a request whose client has left; nobody reads it but the access log."""
OPEN_PATHS = ("/healthz", "/login")
"""Answered without authorisation: they tell nothing about documents."""
WORK_PATHS = "/v1/"
"""Requests below this are work: a drain waits for them and refuses new ones. The page's runs are admitted by
the page, where a person can be told; health and metrics are answered to the end."""

LARGE_BODIES = {
    "/v1/records": "send fewer records",
    "/v1/ingest": "name fewer files at a time",
}
"""JSON bodies that may be as large as a file, and what to do about one that is larger."""


class Guard:
    """Refuses requests that may not pass, before any handler sees them.

    It is plain ASGI, so handlers still learn of a client that leaves, and websockets are covered.
    """

    def __init__(
        self, app: ASGIApp, access: Access, drain: Drain, max_body_bytes: int, max_large_body_bytes: int
    ) -> None:
        self._app = app
        self._access = access
        self._drain = drain
        self._max_body_bytes = max_body_bytes
        self._max_large_body_bytes = max_large_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 413 or 503."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS:
            try:
                self._access.tenant(headers)
            except AccessDenied as error:
                await error_response(error)(scope, receive, send)
                return
        length = headers.get("content-length", "0")
        is_json = headers.get("content-type", "").startswith("application/json")
        # A few hundred records with vectors, or the names of many files, are data like a file, no question.
        remedy = LARGE_BODIES.get(scope["path"])
        limit = self._max_body_bytes if remedy is None else self._max_large_body_bytes
        if is_json and length.isdigit() and int(length) > limit:
            remedy = remedy or "shorten it, or upload long text as a document"
            error = InvalidQuestion(
                f"the JSON body has {int(length):,} bytes, the limit is {limit:,}; {remedy}"
            )
            await JSONResponse(error_to_json(error), status_code=413)(scope, receive, send)
            return
        with ExitStack() as work:
            if scope["path"].startswith(WORK_PATHS):
                try:
                    work.enter_context(self._drain)
                except ShuttingDown as error:
                    await error_response(error)(scope, receive, send)
                    return
            await self._app(scope, receive, send)


def error_response(error: Exception) -> JSONResponse:
    """Return an error of ours as the answer to a request."""
    headers: dict[str, str] = {}
    if isinstance(error, BUSY):
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, ShuttingDown):
        headers["connection"] = "close"  # what the client sends next may find another platform
    return JSONResponse(error_to_json(error), status_code=status_of(error), headers=headers)


@dataclass
class Admission:
    """Bounds the runs under way, so that overload is an answer and not a queue."""

    limit: int
    """Runs under way at once."""
    running: int = 0
    """Runs under way now."""

    def __enter__(self) -> None:
        if self.running >= self.limit:
            raise Overloaded(
                f"{self.running} runs are under way, the limit is {self.limit}; retry shortly", 2.0
            )
        self.running += 1

    def __exit__(self, *_: object) -> None:
        self.running -= 1


def event_stream(lines: AsyncIterator[str], admission: Admission) -> StreamingResponse:
    """Return server-sent events, admitted as one run; an error of ours ends the stream as an event.

    A client that leaves closes the iterator, and with it the run down to the engine.

    Raises:
        Overloaded: Too many runs are under way; raised before the response begins.
    """
    admission.__enter__()

    async def guarded() -> AsyncIterator[str]:
        try:
            async with aclosing(lines) as open_lines:  # pyright: ignore[reportArgumentType]
                async for line in open_lines:
                    yield line
        except OURS as error:
            yield sse(error_to_json(error))
        finally:
            admission.__exit__()

    return StreamingResponse(guarded(), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, or cancel it when the client leaves before.

    A server does not cancel the handler of a client that has left: a run would go on for nobody.

    Args:
        request: Its body has been read.
        work: Whatever it has begun must end when it is cancelled.

    Raises:
        HTTPException: The client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(CLIENT_LEFT, "the client has left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(data: Any) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(data)}\n\n"
