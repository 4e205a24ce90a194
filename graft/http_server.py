"""Uvicorn with our signals: the platform stops after its server, in the same event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

GRACE_S = 5
"""Seconds open streams may take to end once the server is told to stop."""


class HttpServer(uvicorn.Server):
    """Serves an application on sockets that are already bound, and leaves signals to its owner."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S))
        self.listening = asyncio.Event()
        """Set once requests are accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept requests and say so."""
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install nothing: Ctrl-C and SIGTERM are handled by `graft.serve`."""
        yield
