from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr
import pytest
from fakes_graft import FakeGraft, sample_graft
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

import ui
from graft.access import Access
from graft.drain import Drain
from graft.errors import AccessDenied
from ui.access import CONTENT_POLICY, Gate

# Gradio 6.31 counts its events with pandas options that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")


HERE = "http://127.0.0.1"


def deny(request: gr.Request) -> None:
    raise AccessDenied("a token is needed")


def allow(request: gr.Request) -> None:
    """Let everyone in."""


@asynccontextmanager
async def served(
    graft: FakeGraft, authorise, drain: Drain | None = None
) -> AsyncIterator[tuple[gr.Blocks, AsyncClient]]:
    blocks = ui.build_app(graft, authorise, admission=drain)
    app = ui.mount(FastAPI(), blocks)
    transport = ASGITransport(app)
    async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url=HERE) as client:
        yield blocks, client


async def call(client: AsyncClient, fn_index: int, data: list[Any], event: dict[str, Any]) -> dict[str, Any]:
    """Post to a handler by its number, as anyone can, and return how it ended."""
    session = f"session-{fn_index}"
    body = {
        "fn_index": fn_index,
        "data": data,
        "event_data": event,
        "session_hash": session,
        "trigger_id": None,
    }
    joined = await client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    stream = await client.get("/gradio_api/queue/data", params={"session_hash": session})
    messages = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")


EVENT = {"id": "t1", "place": "d1", "value": {"text": "hi"}, "index": 0}


async def test_every_handler_refuses_a_raw_call_without_permission():
    graft = sample_graft()
    async with served(graft, deny) as (blocks, client):
        handlers = {index: fn for index, fn in blocks.fns.items() if fn.fn is not None}
        assert len(handlers) >= 15
        for index, fn in handlers.items():
            ended = await call(client, index, [None] * len(fn.inputs), EVENT)
            assert ended["success"] is False, f"{fn.name} ran without permission"
            assert ended["output"]["error"] == "a token is needed", fn.name
        for fn in handlers.values():
            data = {"data": [None] * len(fn.inputs)}
            assert (await client.post(f"/gradio_api/run/{fn.api_name}", json=data)).status_code == 404
            assert (await client.post(f"/gradio_api/api/{fn.api_name}", json=data)).status_code == 404
            path = f"/gradio_api/call/{fn.api_name}"
            event_id = (await client.post(path, json=data)).json()["event_id"]
            ended = await client.get(f"{path}/{event_id}")
            assert "event: error" in ended.text
            assert "event: complete" not in ended.text
    assert graft.calls == []
    assert graft.rag.runs == []


async def test_the_same_calls_reach_the_platform_with_permission():
    graft = sample_graft()
    async with served(graft, allow) as (blocks, client):
        for index, fn in blocks.fns.items():
            if fn.fn is not None and fn.name == "load":
                assert (await call(client, index, [""] * len(fn.inputs), EVENT))["success"] is True
    assert {"libraries", "documents"} <= set(graft.calls)


async def test_every_event_runs_python_through_the_gate_or_none_at_all():
    blocks = ui.build_app(sample_graft(), allow)
    for fn in blocks.fns.values():
        assert fn.api_visibility == "private"
        if fn.fn is None:
            assert fn.js, "an event that neither the server nor the page acts on"
        else:
            assert fn.queue is True


async def test_page_with_an_open_handler_is_refused():
    gate = Gate(allow)
    with gr.Blocks(analytics_enabled=False) as blocks:
        box = gr.Textbox()
        box.submit(lambda text: text, box, box)
    with pytest.raises(RuntimeError, match="without a gate"):
        gate.check(blocks)


async def test_handler_that_does_not_take_the_request_is_refused():
    async def handler(text: str) -> str:
        return text

    with pytest.raises(TypeError, match="request first"):
        Gate(allow)(handler)


async def test_the_platforms_own_rule_sees_the_headers_of_a_call():
    graft = sample_graft()
    access = Access(token="secret")
    async with served(graft, lambda request: access.tenant(dict(request.headers)) and None) as (
        blocks,
        client,
    ):
        load = next(index for index, fn in blocks.fns.items() if fn.name == "load")
        assert (await call(client, load, ["", ""], EVENT))["success"] is False
        client.headers["authorization"] = "Bearer secret"
        assert (await call(client, load, ["", ""], EVENT))["success"] is True


async def test_a_question_during_a_drain_is_refused_in_words_and_the_page_stays_readable():
    graft, drain = sample_graft(), Drain()
    async with served(graft, allow, drain) as (blocks, client):
        handlers = {fn.name: index for index, fn in blocks.fns.items()}
        question = ["What is a valve?", "", "", None]
        assert (await call(client, handlers["ask"], question, EVENT))["success"] is True
        await drain.run(0.0, asyncio.Event())
        refused = await call(client, handlers["ask"], question, EVENT)
        assert refused["success"] is False
        assert "shutting down" in refused["output"]["error"]
        assert (await call(client, handlers["stop"], [], EVENT))["success"] is True
        assert (await call(client, handlers["load"], ["", ""], EVENT))["success"] is True
    assert len(graft.rag.runs) == 1
    assert drain.num_under_way == 0


async def test_page_and_only_the_page_carries_the_content_policy():
    async with served(sample_graft(), allow) as (_, client):
        page = await client.get("/")
        assert page.headers["content-security-policy"] == CONTENT_POLICY
        assert "content-security-policy" not in (await client.get("/theme.css")).headers


async def test_page_is_closed_where_gradio_is_open():
    async with served(sample_graft(), allow) as (blocks, client):
        config = (await client.get("/config")).json()
        assert config["analytics_enabled"] is False
        assert config["footer_links"] == []
        assert config["run_history"] is False
        assert (await client.get("/monitoring")).status_code >= 400
        assert blocks.max_file_size == 100 * 2**20
        chat = next(item["props"] for item in config["components"] if item["type"] == "chatbot")
        assert chat["sanitize_html"] is True
        assert chat["allow_tags"] is False


def test_importing_the_package_loads_no_gradio():
    code = "import sys, ui, ui.runs, ui.sources, ui.documents; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
