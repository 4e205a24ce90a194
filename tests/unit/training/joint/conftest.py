from __future__ import annotations

from pathlib import Path

import pytest
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from training.types import TrainingPassage, TrainingQuestion, TrainingSet

CITIES = (
    "Lisbon",
    "Quito",
    "Oslo",
    "Accra",
    "Hanoi",
    "Sofia",
    "Riga",
    "Lima",
    "Doha",
    "Bern",
    "Cairo",
    "Minsk",
)
OWNERS = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jun", "Kim", "Leo")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="session")
def lookup_set() -> TrainingSet:
    """Twelve facts and a question of each."""
    passages = tuple(
        TrainingPassage(f"p{index}", f"The keeper of the {city} lighthouse is {owner}.", title=city)
        for index, (city, owner) in enumerate(zip(CITIES, OWNERS, strict=True))
    )
    questions = tuple(
        TrainingQuestion(
            f"q{index}",
            f"Who keeps the lighthouse of {city}?",
            answers=(owner,),
            positive_ids=(f"p{index}",),
            negative_ids=(f"p{(index + 1) % len(CITIES)}",),
        )
        for index, (city, owner) in enumerate(zip(CITIES, OWNERS, strict=True))
    )
    return TrainingSet("lookup", passages, questions)
