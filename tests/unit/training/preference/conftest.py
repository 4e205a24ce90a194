"""A tiny policy with random weights, and passages to read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tiny_model import build_tiny_model

from serving.tokenizer import ModelTokenizer


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def tokenizer(policy_folder: Path) -> ModelTokenizer:
    return ModelTokenizer(policy_folder / "tokenizer.json")
