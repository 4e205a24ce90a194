"""What a search needs of a shard: candidates by leg, statistics, vectors, token codes and passages.

The searcher and the router speak this protocol; a shard in this process and one behind an actor both answer
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from retrieval.filters import FieldType
from retrieval.types import Passage, SearchRequest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class TermStats:
    """What BM25 needs to know of a whole collection; statistics of shards add up."""

    num_chunks: int
    """Live chunks."""
    num_terms: int
    """Sum of their lengths in terms."""
    chunks_with: Mapping[str, int]
    """By term: live chunks that hold it."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one shard's legs found for one request; plain tuples, so that they travel cheaply."""

    dense: tuple[tuple[str, float], ...]
    """Chunk id and cosine, best first, ties by chunk id."""
    lexical: tuple[tuple[str, float], ...]
    """Chunk id and BM25 by the collection's statistics, best first, ties by chunk id."""
    plan: str
    """How the dense leg was answered."""
    seq: int
    """Log position it reflects."""
    dense_ms: float = 0.0
    """Time of the dense leg, shared by a batch."""
    lexical_ms: float = 0.0
    """Time of the lexical leg."""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """By leg: why it was left out."""
    unknown_fields: tuple[str, ...] = ()
    """Fields its filter names that no document of this shard has; an error where no shard knows them."""
    known_fields: Mapping[str, FieldType] = field(default_factory=dict[str, "FieldType"])
    """What a filter can name in this shard; filled where `unknown_fields` is not empty."""


class ShardReader(Protocol):
    """One shard as a search sees it, in this process or behind an actor.

    Every call names the index version, so that a search of several calls and shards never mixes versions.
    A chunk deleted between two calls of one search is simply left out of the later answer.
    """

    @property
    def name(self) -> str:
        """Return the shard's name, such as `shard-0`."""
        ...

    async def term_stats(
        self, version: str, terms: Sequence[str], deadline_s: float | None = None
    ) -> TermStats:
        """Return this shard's share of the collection's statistics."""
        ...

    async def candidates(
        self,
        version: str,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None,
        deadline_s: float | None = None,
    ) -> list[Candidates]:
        """Return both legs' candidates per request; `stats` None means this shard is the collection.

        Raises:
            UnknownVersion: The shard does not hold this version.
            IndexUnavailable: No replica of it answers.
        """
        ...

    async def vectors(self, version: str, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[dim] by chunk id, of the chunks this shard holds."""
        ...

    async def token_codes(self, version: str, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        """Return compressed token vectors by chunk id, of the chunks this shard holds."""
        ...

    async def passages(
        self, version: str, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        """Return passages by chunk id, of the tenant's chunks this shard holds.

        With `before` or `after`, each passage grows by as many chunks of its document as there are: one exact
        stretch of the document's text from the first one's start to the last one's end.
        """
        ...

    async def neighbours(
        self, version: str, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        """Return the passages around a chunk in its document, itself included, in order."""
        ...
