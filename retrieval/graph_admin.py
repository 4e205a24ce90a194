"""What an operator asks of the graph, beside `GraphReader`; and what every form of it refuses."""

from __future__ import annotations

from typing import Protocol

from retrieval.errors import GraphDisabled, InvalidSearch
from retrieval.graph.types import GraphStats
from retrieval.types import GraphReader

MAX_ITEMS = 1000
"""Most entities, neighbours, chunks or communities of one answer."""
MAX_LEVEL = 100
"""Deepest level of communities that may be asked for."""
MAX_QUESTION_CHARS = 100_000
"""Longest question or name."""


class GraphAdmin(GraphReader, Protocol):
    """The graph with its operations."""

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come; also where no graph is kept."""
        ...

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more, and return how many.

        Raises:
            GraphDisabled: No graph is kept.
        """
        ...

    async def drop(self) -> None:
        """Remove what an earlier configuration kept.

        Raises:
            InvalidVersion: A graph is kept now.
        """
        ...


def check_limits(text: str = "", level: int = 0, **limits: int) -> None:
    """Refuse a question, level or limit out of its bounds; raises InvalidSearch."""
    if len(text) > MAX_QUESTION_CHARS:
        raise InvalidSearch(
            f"the question has {len(text):,} characters, more than {MAX_QUESTION_CHARS:,}; shorten it"
        )
    if not 0 <= level <= MAX_LEVEL:
        raise InvalidSearch(f"level must be from 0 (coarsest) to {MAX_LEVEL}; got {level}")
    for name, value in limits.items():
        if not 1 <= value <= MAX_ITEMS:
            raise InvalidSearch(f"{name} must be from 1 to {MAX_ITEMS:,}; got {value}")


def graph_is_off() -> GraphDisabled:
    """Return the error that says how to turn the graph on."""
    return GraphDisabled(
        'this index keeps no graph (retrieval.graph is "none"); set it to "rules", which needs no model, or '
        'to "llm", and start again: documents that are here already are taken up then'
    )
