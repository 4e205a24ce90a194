"""Keeps an event that starts while Gradio's stream of events is closing from being lost.

Gradio's page reads the results of its events from one stream, which the server closes when none is pending.
An event that the server accepts just after that moment is answered before the page has read the close: the
page believes its stream open, opens no other, and never sees the result. Seen with Gradio 6.31 when an
Enter follows a change of tab within milliseconds (5 of 12 tries). Such an answer is held back until the
close has arrived.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOLD_S = 0.3
"""How much later than the close of its session's stream an event's acceptance is sent, at least."""

_CLOSE = b'"msg":"close_stream"'
_JOIN, _DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"


class StreamOrder:
    """ASGI middleware: a page reads the close of its stream before the acceptance of a later event."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap the application that holds Gradio's routes."""
        self._app = app
        self._closed_s: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path.endswith(_DATA):
            await self._app(scope, receive, self._noting(scope, send))
        elif path.endswith(_JOIN):
            await self._holding(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _noting(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that remembers when the session's stream was closed."""
        session = (parse_qs(scope.get("query_string", b"").decode()).get("session_hash") or [""])[0]

        async def noting(message: Message) -> None:
            if _CLOSE in message.get("body", b""):
                self._forget()
                self._closed_s[session] = time.monotonic()
            await send(message)

        return noting

    async def _holding(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the start of an event; its answer waits where the session's stream was closed just now."""
        body = bytearray()

        async def reading() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def holding(message: Message) -> None:
            if message["type"] == "http.response.start":
                closed_s = self._closed_s.get(_session_of(bytes(body)), 0.0)
                await asyncio.sleep(max(0.0, closed_s + HOLD_S - time.monotonic()))
            await send(message)

        await self._app(scope, reading, holding)

    def _forget(self) -> None:
        """Drop the sessions whose close is long past."""
        now_s = time.monotonic()
        self._closed_s = {key: at_s for key, at_s in self._closed_s.items() if now_s - at_s < HOLD_S}


def _session_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["session_hash"])
    except (ValueError, KeyError, TypeError):
        return ""  # Not an event of a page; Gradio has refused it.
