from __future__ import annotations

from pathlib import Path

import joint_victim
import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from training.types import TrainingSet


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="session")
def lookup_set() -> TrainingSet:
    return joint_victim.lookup_set(has_negatives=True)
