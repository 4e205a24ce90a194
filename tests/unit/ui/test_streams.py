"""An event accepted while its session's stream closes is answered only after the close has arrived."""

from __future__ import annotations

import json

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from ui.streams import HOLD_S, StreamOrder


@pytest.fixture
async def client():
    app = FastAPI()
    app.add_middleware(StreamOrder)

    @app.get("/gradio_api/queue/data")
    async def data() -> StreamingResponse:
        async def events():
            yield 'data: {"msg":"process_completed"}\n\n'
            yield 'data: {"msg":"close_stream"}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/gradio_api/queue/join")
    async def join(request: Request) -> dict[str, str]:
        return {"event_id": (await request.json()).get("session_hash", "none")}

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as opened:
        yield opened


@pytest.fixture
def held(monkeypatch) -> list[float]:
    """The seconds each answer was held back, without waiting for them."""
    seconds: list[float] = []

    async def note(delay_s: float) -> None:
        seconds.append(delay_s)

    monkeypatch.setattr("ui.streams.asyncio.sleep", note)
    return seconds


def body_of(session: str) -> bytes:
    return json.dumps({"session_hash": session, "data": ["x"]}).encode()


async def join(client: httpx.AsyncClient, session: str) -> None:
    answer = await client.post("/gradio_api/queue/join", content=body_of(session))
    assert answer.json() == {"event_id": session}


async def test_event_of_a_closing_stream_is_answered_after_the_close(client, held, monkeypatch):
    monkeypatch.setattr("ui.streams.time.monotonic", lambda: 1_000.0)
    assert "close_stream" in (await client.get("/gradio_api/queue/data?session_hash=one")).text
    await join(client, "one")
    assert held == pytest.approx([HOLD_S])


async def test_other_sessions_and_later_events_do_not_wait(client, held, monkeypatch):
    clock = 1_000.0
    monkeypatch.setattr("ui.streams.time.monotonic", lambda: clock)
    await client.get("/gradio_api/queue/data?session_hash=one")
    await join(client, "two")
    clock += 2 * HOLD_S
    await join(client, "one")
    assert held == [0.0, 0.0]


async def test_answer_itself_is_unchanged(client):
    answer = await client.post("/gradio_api/queue/join", content=body_of("nine"))
    assert answer.json() == {"event_id": "nine"}
    without = await client.post("/gradio_api/queue/join", content=b"{}")
    assert without.json() == {"event_id": "none"}
