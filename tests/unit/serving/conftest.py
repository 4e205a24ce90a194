"""A generator over an engine that writes letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from letter_engine import LetterEngine, Start, build
from tiny_model import build_tiny_model

from serving.config import ServingConfig
from serving.generator import LocalGenerator
from serving.inproc_driver import InprocDriver


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def start(folder: Path) -> AsyncIterator[Start]:
    """Returns a started generator over an engine, with settings; it is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(engine: LetterEngine, **settings: object) -> LocalGenerator:
            config = ServingConfig(model=str(folder), **settings)  # type: ignore[arg-type]
            generator = LocalGenerator(config, InprocDriver(config, str(folder), build=build(engine)))
            stack.push_async_callback(generator.stop)
            stack.callback(engine.stuck.set)
            await generator.start()
            return generator

        yield start
