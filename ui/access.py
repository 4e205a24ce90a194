"""Who may use the page, and what the page may load.

Gradio runs any handler for whoever posts its number to `/gradio_api/queue/join`, whatever the page shows.
So every handler is wrapped by one `Gate`, which asks for permission before anything else, and a page with a
handler that is not wrapped is refused when it is built.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

import gradio as gr

from graft.errors import AccessDenied
from graft.wire import OURS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Authorise = Callable[[gr.Request], None]
"""Returns when the caller may use the page, and raises AccessDenied otherwise."""

Admission = AbstractContextManager[None]
"""Entered for as long as a run of the page goes on; raises an error of ours to refuse one."""

CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio evaluates templates of its HTML component and inlines its configuration.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
"""Content-Security-Policy of the page: nothing is fetched from, or sent to, another host."""


class Gate:
    """Wraps every handler of the page: permission first, then errors as messages a person can act on."""

    def __init__(self, authorise: Authorise, admission: Admission | None = None) -> None:
        self._authorise = authorise
        self._admission = admission or nullcontext()
        self._wrapped: set[Callable[..., Any]] = set()

    def __call__(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return the handler behind the gate.

        Args:
            handler: An async function or async generator function whose first parameter is the `gr.Request`.
        """
        first = next(iter(inspect.signature(handler).parameters), None)
        if first != "request":
            raise TypeError(f"handler {handler.__qualname__} must take the request first, not {first}")
        gated = self._stream(handler) if inspect.isasyncgenfunction(handler) else self._call(handler)
        self._wrapped.add(gated)
        return gated

    def check(self, blocks: gr.Blocks) -> None:
        """Refuse a page with a handler that did not come through this gate.

        Raises:
            RuntimeError: Some handler runs code without asking; the message names it.
        """
        open_handlers = [
            str(fn.fn) for fn in blocks.fns.values() if fn.fn is not None and fn.fn not in self._wrapped
        ]
        if open_handlers:
            raise RuntimeError(f"handlers without a gate: {', '.join(open_handlers)}")

    def _call(self, handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @wraps(handler)
        async def gated(request: gr.Request, *args: Any) -> Any:
            try:
                self._authorise(request)
                return await handler(request, *args)
            except OURS as error:
                raise _shown(error) from error

        return gated

    def _stream(self, handler: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., Any]:
        @wraps(handler)
        async def gated(request: gr.Request, *args: Any) -> AsyncGenerator[Any, None]:
            try:
                self._authorise(request)
                with self._admission:
                    async with aclosing(handler(request, *args)) as updates:
                        async for update in updates:
                            yield update
            except OURS as error:
                raise _shown(error) from error

        return gated


class ContentPolicy:
    """ASGI middleware that adds the content policy to the page and to nothing else."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path.rstrip("/") or "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or (scope["path"].rstrip("/") or "/") != self._path:
            await self._app(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_POLICY.encode())
                headers = [*message["headers"], policy, (b"referrer-policy", b"same-origin")]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, with_policy)


def sent(event: gr.EventData, name: str) -> str | None:
    """Return what the browser sent under a name with an event, as text; None where it sent nothing."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return None if value is None else str(value)


def _shown(error: Exception) -> gr.Error:
    """Return an error as the page shows it; it is expected, so it is not printed to the log."""
    title = "Not allowed" if isinstance(error, AccessDenied) else "That did not work"
    return gr.Error(str(error), title=title, print_exception=False, duration=None)
