"""What an answer asks of the graph of each shard, and how the rounds of an answer are run.

An answer is a plan: a generator that yields one `Ask` at a time, is sent what every shard says to it, and
returns the value. The same plan runs over one shard, inside one SQLite snapshot, and over several through the
router, so any sharding returns the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

Answer = TypeVar("Answer")
What = Literal["size", "aliases", "known", "keys", "connected", "mentions", "relations", "edges"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to every shard; `GraphRows` answers it."""

    what: What
    """The kind of rows."""
    names: tuple[str, ...] = ()
    """Keys of names it is about; for `keys`, the one text that keys must hold."""


Plan = Generator[Ask, list[Any], Answer]
"""Yields what to ask, is sent each shard's answer, returns the whole."""


class Size(NamedTuple):
    """How large a shard's part of some libraries is."""

    num_chunks: int
    """Chunks taken up."""
    num_pending: int
    """Chunks that wait, counted up to a limit."""
    state: str
    """Changes whenever the graph of these libraries does."""


class Told(NamedTuple):
    """What a shard's chunks say of one name."""

    key: str
    """The name's key."""
    forms: list[tuple[str, str, int]]
    """Form, kind, and how often it is used."""
    descriptions: list[tuple[str, int]]
    """Sentence that says what it is, and in how many chunks."""
    chunk_ids: list[str]
    """Chunks that mention it."""


class ToldEdge(NamedTuple):
    """What a shard's chunks say of two names."""

    source: str
    """Key of a name."""
    target: str
    """Key of another."""
    label: str
    """Verb phrase, or empty."""
    weight: float
    """Sum over its chunks."""
    chunk_ids: list[str]
    """The first chunks that say so, by id."""


def run_here(plan: Plan[Answer], answer: Callable[[Ask], Any]) -> Answer:
    """Return what a plan makes of one shard's answers."""
    answers: list[Any] | None = None
    try:
        while True:
            ask = next(plan) if answers is None else plan.send(answers)
            answers = [answer(ask)]
    except StopIteration as stop:
        return stop.value


async def run_over(plan: Plan[Answer], ask_all: Callable[[Ask], Awaitable[list[Any]]]) -> Answer:
    """Return what a plan makes of the answers of several shards."""
    answers: list[Any] | None = None
    try:
        while True:
            ask = next(plan) if answers is None else plan.send(answers)
            answers = await ask_all(ask)
    except StopIteration as stop:
        return stop.value
    finally:
        plan.close()
