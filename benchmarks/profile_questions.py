"""Questions about countries whose answers can be checked, made from the profiles of `factbook`.

A passage is one fact, headed by its country ("Chad" / "Geography, Coastline: 0 km (landlocked)"). A question
asks for it in words that the fact does not use ("How much shore does Chad have?"), so that a search has to
learn what is meant, and its answer is a piece of the fact, so that a reader has to find the right fact and
copy. Facts of every country look alike: the wrong country and the wrong field are the near misses.
"""

from __future__ import annotations

import html
import json
import lzma
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.types import TrainingPassage, TrainingQuestion, TrainingSet

_TAG = re.compile(r"<[^>]+>")
_CHEAP = re.compile(r"none|na|\W*0\b.*", re.IGNORECASE)
"""Answers that one could guess: many countries have no shore and no lake."""
_MAX_CHARS = 160
"""Longer facts are stories; they are left out."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """How one field is asked for."""

    field: str
    """Path within a profile, joined by `, `."""
    question: str
    """`{}` stands for the country."""
    answer: str = r"[^;(]+"
    """What of the fact answers; matched from its first character that fits."""


_NUMBER = r"-?\$?[\d,]+(\.\d+)?"
ASKED = (
    _Ask("Government, Capital, name", "Which city is the government of {} seated in?"),
    _Ask("Communications, Internet country code", "What do web addresses in {} end with?", r"\.\w+"),
    _Ask("People and Society, Population, total", "How many people live in {}?", _NUMBER),
    _Ask("Geography, Area, total", "How large is {} altogether?", r"[\d.,]+( million)? sq km"),
    _Ask("Geography, Area, water", "How much of {} is covered by lakes and rivers?", r"[\d.,]+ sq km"),
    _Ask("Geography, Coastline", "How much shore does {} have?", r"[\d.,]+ km"),
    _Ask("Geography, Land boundaries, total", "How long are the borders of {}?", r"[\d.,]+ km"),
    _Ask("Geography, Elevation, highest point", "What is the tallest place in {}?"),
    _Ask("Geography, Elevation, lowest point", "What is the deepest place in {}?"),
    _Ask(
        "People and Society, Median age, total", "How old is the typical inhabitant of {}?", r"[\d.]+ years"
    ),
    _Ask(
        "People and Society, Life expectancy at birth, total population",
        "How long can a newborn in {} hope to live?",
        r"[\d.]+ years",
    ),
    _Ask("People and Society, Birth rate", "How many babies come per thousand people in {}?", r"[\d.]+"),
    _Ask("People and Society, Death rate", "How many of a thousand people in {} die in a year?", r"[\d.]+"),
    _Ask("People and Society, Nationality, noun", "What are people from {} called?", r"[^;(,]+"),
    _Ask("Government, National anthem(s), title", "Which song is sung for {}?", r'"[^"]+"'),
    _Ask("Government, Country name, conventional long form", "What is {} in full?"),
    _Ask("Government, National symbol(s)", "Which animal or plant stands for {}?"),
    _Ask("Government, Independence", "When did {} become free?", r"\d+ \w+ \d{4}"),
    _Ask("Transportation, Airports", "At how many airfields can a plane land in {}?", r"\d[\d,]*"),
    _Ask(
        "Communications, Telephones - mobile cellular, total subscriptions",
        "How many cell phone contracts are there in {}?",
        r"[\d.,]+( million| billion)?",
    ),
    _Ask("Communications, Internet users, percent of population", "What share of {} is online?", r"[\d.]+%"),
    _Ask("People and Society, Physician density", "How many doctors does {} have?", r"[\d.]+"),
    _Ask("People and Society, Obesity - adult prevalence rate", "How many adults in {} are fat?", r"[\d.]+%"),
    _Ask("Geography, Irrigated land", "How much farmland of {} is watered by people?", r"[\d.,]+ sq km"),
    _Ask("Economy, Exports, Exports 2022", "How much did {} sell abroad in 2022?", r"\$[\d.,]+ \w+"),
    _Ask("Economy, Imports, Imports 2022", "How much did {} buy abroad in 2022?", r"\$[\d.,]+ \w+"),
)
BESIDE = (
    "People and Society, Population, male",
    "People and Society, Population growth rate",
    "Geography, Area, land",
    "People and Society, Median age, male",
    "People and Society, Life expectancy at birth, female",
    "People and Society, Nationality, adjective",
    "Government, Capital, time difference",
    "Communications, Telephones - fixed lines, total subscriptions",
    "People and Society, Infant mortality rate, total",
    "Geography, Climate",
)
"""Fields that nobody asks for and that read like those which are."""


def _facts(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (field, text) of a profile."""
    for name, value in node.items():
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            text = " ".join(html.unescape(_TAG.sub(" ", value["text"])).split())
            yield ", ".join((*path, name.strip())), text
        elif isinstance(value, dict):
            yield from _facts(value, (*path, name.strip()))


def _country(facts: Mapping[str, str]) -> str | None:
    for form in ("short", "long"):
        name = re.sub(r"\s*\(.*\)", "", facts.get(f"Government, Country name, conventional {form} form", ""))
        if name and name.lower() != "none":
            return name
    return None


def read_profiles(folder: Path, num_countries: int, seed: int = 0) -> TrainingSet:
    """Return facts of countries drawn at random and the questions for them, grouped by country.

    Args:
        folder: `factbook`, with `factbook.jsonl.xz`.
        num_countries: At most that many; a profile without a name or with few facts is no country.
        seed: Of the draw.
    """
    profiles: dict[str, dict[str, str]] = {}
    with lzma.open(folder / "factbook.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            facts = dict(_facts(json.loads(line)["profile"]))
            name = _country(facts)
            if name and name not in profiles and len(facts) > 100:
                profiles[name] = facts
    names = sorted(random.Random(f"profiles:{seed}").sample(sorted(profiles), num_countries))
    passages, questions = [], []
    for name in names:
        facts = {field: text for field, text in profiles[name].items() if 0 < len(text) <= _MAX_CHARS}
        for field in (*(ask.field for ask in ASKED), *BESIDE):
            if field in facts:
                passages.append(TrainingPassage(f"{name}/{field}", f"{field}: {facts[field]}", name))
        for ask in ASKED:
            found = re.search(ask.answer, facts.get(ask.field, ""))
            answer = found[0].strip(' "') if found else ""
            if answer and not _CHEAP.fullmatch(answer):
                fact = f"{name}/{ask.field}"
                questions.append(
                    TrainingQuestion(fact, ask.question.format(name), (answer,), (fact,), group=name)
                )
    return TrainingSet("profiles", passages, questions)
