"""Which models the OpenAI-compatible endpoint has: graphs, the generator, and its adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from letter_engine import LetterEngine, build
from tiny_adapter import write_adapter
from tiny_model import build_tiny_model

from graft.admission import Admission
from graft.openai_api import openai_router
from serving.config import ServingConfig
from serving.errors import InvalidGeneration
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver


class Graft:
    """As much of the SDK as the endpoint needs."""

    def __init__(self, generator: LocalGenerator) -> None:
        self.generator = generator

    def graphs(self) -> list[str]:
        return ["rag"]


@pytest.fixture
async def generator(tmp_path: Path) -> AsyncIterator[LocalGenerator]:
    folder = str(build_tiny_model(tmp_path / "model"))
    config = ServingConfig(model=folder, max_adapters=1)
    local = LocalGenerator(config, InprocDriver(config, folder, build=build(LetterEngine())))
    await local.start()
    yield local
    await local.stop()


@pytest.fixture
async def http(generator: LocalGenerator) -> AsyncIterator[AsyncClient]:
    app = FastAPI()
    graft: Any = Graft(generator)
    app.include_router(openai_router(graft, Admission(4)))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://graft") as client:
        yield client


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **fields}


async def test_an_adapter_is_a_model_while_it_is_loaded(
    http: AsyncClient, generator: LocalGenerator, tmp_path: Path
) -> None:
    info = await generator.load_adapter(
        "legal", write_adapter(tmp_path / "a", 1, model=Path(generator.config.model))
    )
    ids = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
    assert ids == ["graft/rag", generator.config.model, info.adapter_id]
    answer = await http.post("/v1/chat/completions", json=body(info.adapter_id))
    assert answer.json()["choices"][0]["message"]["content"] == "aa"
    assert answer.json()["model"] == info.adapter_id
    await generator.unload_adapter(info.adapter_id)
    with pytest.raises(InvalidGeneration, match=r"unknown model 'legal@.*this platform has: graft/rag, /"):
        await http.post("/v1/chat/completions", json=body(info.adapter_id))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        ({"structured_outputs": {"choice": ["a"], "regex": "b"}}, "one of choices, regex and json_schema"),
        (
            {"structured_outputs": {"regex": "b"}, "response_format": {"type": "json_object"}},
            "response_format or structured_outputs, not both",
        ),
        ({"structured_outputs": {"choice": [""]}}, "choice must have 1 to"),
    ],
)
async def test_a_form_that_is_no_form_is_the_callers_error(
    http: AsyncClient, generator: LocalGenerator, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidGeneration, match=said):
        await http.post("/v1/chat/completions", json=body(generator.config.model, **fields))
