from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI, Request

from graft.admission import while_connected


class Runs:
    """Work that goes on until it is let go, and notes how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = ""

    async def work(self) -> str:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "complete"
        return "answer"


def app_of(runs: Runs) -> FastAPI:
    app = FastAPI()

    @app.post("/ask")
    async def ask(request: Request, body: dict[str, str]) -> str:
        return await while_connected(request, runs.work())

    return app


class Client:
    """Speaks ASGI, so that it can leave at a chosen moment."""

    def __init__(self) -> None:
        self.body_sent = False
        self.gone = asyncio.Event()
        self.statuses: list[int] = []

    async def receive(self) -> dict[str, object]:
        if not self.body_sent:
            self.body_sent = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    async def post(self, app: FastAPI) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/ask",
            "raw_path": b"/ask",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
        }
        await app(scope, self.receive, self.send)


async def test_work_is_cancelled_when_its_client_leaves():
    runs, client = Runs(), Client()
    posting = asyncio.create_task(client.post(app_of(runs)))
    await runs.begun.wait()
    client.gone.set()
    await asyncio.wait_for(posting, 5)
    assert runs.ended == "cancelled"
    assert client.statuses == [499]


async def test_work_ends_when_its_client_stays():
    runs, client = Runs(), Client()
    posting = asyncio.create_task(client.post(app_of(runs)))
    await runs.begun.wait()
    runs.go.set()
    await asyncio.wait_for(posting, 5)
    assert runs.ended == "complete"
    assert client.statuses == [200]


async def test_an_error_of_the_work_is_raised():
    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await while_connected(Request({"type": "http"}, Client().receive), fails())


async def test_work_is_cancelled_with_its_handler():
    runs, client = Runs(), Client()
    posting = asyncio.create_task(client.post(app_of(runs)))
    await runs.begun.wait()
    posting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await posting
    assert runs.ended == "cancelled"
