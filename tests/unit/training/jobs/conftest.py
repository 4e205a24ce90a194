"""A job small enough to run in seconds, as a user would write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from tests.small_job import job_toml, write_lookup_set


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return (
        build_tiny_encoder(tmp_path_factory.mktemp("encoder")),
        build_tiny_model(tmp_path_factory.mktemp("reader")),
    )


@pytest.fixture(scope="session")
def lookup_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lookup_set(tmp_path_factory.mktemp("data") / "lookup.json")


@pytest.fixture
def job_text(tiny_models: tuple[Path, Path], lookup_file: Path, tmp_path: Path) -> str:
    return job_toml(*tiny_models, lookup_file, tmp_path / "run")
