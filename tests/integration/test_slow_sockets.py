"""Sockets that stop reading: the server waits for them, the engine does not, and all of their text comes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from held import Held, held
from letter_engine import LetterEngine, build, until
from tiny_model import build_tiny_model

from graft.admission import Admission
from graft.http_server import HttpServer
from graft.openai_api import openai_router
from serving.config import ServingConfig
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver

pytestmark = pytest.mark.integration

SMALL_BYTES = 4096
"""Buffers of the kernel, so that little is on its way when nobody reads."""
LETTER = "a" * 20_000
NUM_TOKENS = 100


class Stream:
    """A client that reads an event stream only when it is told to."""

    def __init__(self, host: str, port: int, body: dict[str, Any]) -> None:
        self._address = (host, port)
        self._body = json.dumps(body | {"stream": True}).encode()

    async def open(self) -> str:
        """Send the request and return the first text that comes."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, self._address)
        self._reader, self.writer = await asyncio.open_connection(sock=connection, limit=SMALL_BYTES)
        self.writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(self._body) + self._body
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"chunked" in head
        while not (text := self._text(await self._piece())):
            pass
        return text

    async def rest(self) -> str:
        """Return all text that is left, up to the end that the server marks."""
        found = b""
        while piece := await self._piece():
            found += piece
        assert found.endswith(b"data: [DONE]\n\n")
        self.writer.close()
        await self.writer.wait_closed()
        return self._text(found)

    async def _piece(self) -> bytes:
        num_bytes = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(num_bytes + 2))[:-2]

    @staticmethod
    def _text(lines: bytes) -> str:
        events = [line[6:] for line in lines.split(b"\n\n") if line.startswith(b"data: {")]
        found = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
        return "".join(delta.get("content") or "" for delta in found)


def body(model: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": max_tokens,
        **fields,
    }


class Graft:
    """As much of the SDK as the endpoint needs."""

    def __init__(self, generator: LocalGenerator) -> None:
        self.generator = generator

    def graphs(self) -> list[str]:
        return []


@pytest.fixture
async def generator(tmp_path: Path) -> AsyncIterator[LocalGenerator]:
    """An engine of one slot that writes far more than a socket holds."""
    folder = str(build_tiny_model(tmp_path / "model"))
    config = ServingConfig(model=folder, max_num_seqs=1)
    engine = LetterEngine(letter=LETTER)
    local = LocalGenerator(config, InprocDriver(config, folder, build=build(engine)))
    await local.start()
    yield local
    await local.stop()


@asynccontextmanager
async def served(generator: LocalGenerator, admission: Admission) -> AsyncIterator[tuple[str, int]]:
    app = FastAPI()
    graft: Any = Graft(generator)
    app.include_router(openai_router(graft, admission))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
    server = HttpServer(app)
    serving = asyncio.create_task(server.serve([listener]))
    await server.listening.wait()
    yield listener.getsockname()
    server.should_exit = True
    await serving


async def test_a_socket_that_stops_reading_holds_up_the_server_alone(generator: LocalGenerator) -> None:
    admission = Admission(4)
    async with served(generator, admission) as (host, port), asyncio.timeout(60):
        model = generator.config.model
        stopped, gone = (Stream(host, port, body(model, NUM_TOKENS)) for _ in range(2))
        text = await stopped.open()
        await gone.open()
        await until(lambda: held(generator) == Held(request_ids=2))
        assert admission.running == 2, "the server still waits for the sockets"
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as others:
            for _ in range(3):
                answer = await others.post("/v1/chat/completions", json=body(model, 2))
                assert answer.json()["choices"][0]["message"]["content"] == 2 * LETTER
        gone.writer.transport.abort()
        await until(lambda: held(generator) == Held(request_ids=1))
        assert text + await stopped.rest() == NUM_TOKENS * LETTER
        await until(lambda: (held(generator), admission.running) == (Held(), 0))


async def test_the_real_engine_waits_for_no_socket(platform_url: str) -> None:
    url = urlsplit(platform_url)
    assert url.hostname is not None
    assert url.port is not None
    async with httpx.AsyncClient(base_url=platform_url, timeout=60) as others, asyncio.timeout(60):
        model = (await others.get("/v1/generator")).json()["info"]["model_id"]
        form = {"regex": "[a-z]{300}"}  # says when all of a text has come
        wanted = [body(model, 400, seed=seed, structured_outputs=form) for seed in range(3)]
        stopped = [Stream(url.hostname, url.port, one) for one in wanted]
        texts = [await one.open() for one in stopped]
        assert not any(re.fullmatch(form["regex"], text) for text in texts)
        assert (await others.post("/v1/chat/completions", json=body(model, 4))).status_code == 200

        async def held_now() -> tuple[int, int, float]:
            stats = (await others.get("/v1/generator")).json()["stats"]
            return stats["num_running"], stats["num_waiting"], stats["kv_usage"]

        while await held_now() != (0, 0, 0.0):  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.02)
        for text, one in zip(texts, stopped, strict=True):
            assert re.fullmatch(form["regex"], text + await one.rest())
