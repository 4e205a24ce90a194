"""Values and seams of the graph index: what is extracted from a chunk, and what a question gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

EntityKind = Literal["name", "acronym", "work", "term"]
"""A proper name, an acronym or identifier, a quoted title, or a lower-case term that the text defines."""
CO_OCCURS = ""
"""Label of a relation that is only two entities in one sentence."""


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity in one chunk."""

    name: str
    """As the chunk writes it, its first form."""
    kind: EntityKind
    """What it looks like."""
    count: int = 1
    """How often the chunk mentions it."""
    description: str | None = None
    """The chunk's sentence that says what it is."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Two entities of one chunk and how they are connected."""

    source: str
    """Name of an entity among the chunk's mentions."""
    target: str
    """Name of another."""
    label: str = CO_OCCURS
    """Verb phrase from source to target, such as `developed by`; empty for mere co-occurrence."""
    weight: float = 1.0
    """Sentences that say so."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A short form that a chunk explains."""

    short: str
    """Such as `RAG`."""
    long: str
    """Such as `retrieval-augmented generation`."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """Everything found in one chunk."""

    mentions: tuple[Mention, ...] = ()
    """Distinct entities."""
    relations: tuple[Relation, ...] = ()
    """Distinct by source, target and label."""
    aliases: tuple[Alias, ...] = ()
    """Short forms explained here."""
    failure: str | None = None
    """Why nothing could be extracted, such as a model's answer in no known form; None when it worked."""


class Extractor(Protocol):
    """Finds entities and relations in the texts of chunks, each by itself."""

    @property
    def name(self) -> str:
        """Return what identifies it: a graph made by another extractor is made anew."""
        ...

    async def extract(self, texts: Sequence[str]) -> list[Extraction]:
        """Return one extraction a text, in order; one that fails carries its cause."""
        ...


class TextModel(Protocol):
    """A language model as the extractor needs it: a prompt to a text."""

    async def complete(self, prompt: str, max_tokens: int) -> str:
        """Return the model's answer to a prompt, at most `max_tokens` long."""
        ...


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity of a library: all mentions whose names mean the same."""

    key: str
    """Its identity within a library: the normalised name, of the long form if it has one."""
    name: str
    """The form used most."""
    kind: EntityKind
    """Of its most frequent form."""
    num_chunks: int
    """Chunks that mention it."""
    also: tuple[str, ...] = ()
    """Its other forms, most used first."""
    descriptions: tuple[str, ...] = ()
    """Sentences that say what it is, at most three."""


@dataclass(frozen=True, slots=True)
class Edge:
    """How two entities of a library are connected, over all chunks."""

    source: str
    """Key of an entity."""
    target: str
    """Key of another."""
    label: str
    """Verb phrase, or empty for co-occurrence, which has source < target."""
    weight: float
    """Sum over chunks."""
    chunk_ids: tuple[str, ...]
    """Chunks that say so, at most ten, in order."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What a library knows around the entities of a question."""

    seeds: tuple[Entity, ...]
    """Entities found in the question, in its order."""
    neighbours: tuple[Entity, ...]
    """Entities connected with them, strongest first."""
    edges: tuple[Edge, ...]
    """Connections among them all, strongest first."""
    chunks: tuple[tuple[str, float], ...]
    """Chunk id and score of chunks about them, best first."""


@dataclass(frozen=True, slots=True)
class Community:
    """A group of entities that belong together."""

    community_id: str
    """Same members at the same level, same id: a report written for it stays valid while `digest` does."""
    level: int
    """0 is the coarsest."""
    parent_id: str | None
    """The community at the level above that holds it."""
    digest: str
    """Hash of its members, their connections and their chunks."""
    entities: tuple[Entity, ...]
    """Members, most mentioned first."""
    chunk_ids: tuple[str, ...]
    """Chunks that mention most of its members first."""
    num_chunks: int
    """All chunks that mention a member."""


@dataclass(frozen=True, slots=True)
class GraphStats:
    """How large a version's graph is and how far it has come."""

    num_chunks: int
    """Chunks taken up."""
    num_pending: int
    """Chunks not taken up yet."""
    num_failed: int
    """Chunks whose extraction failed; `retry_failed` queues them again."""
    num_entities: int
    """Distinct keys, over all libraries."""
    num_relations: int
    """Relations of single chunks."""
    num_communities: int
    """Of all levels and libraries."""
    extractor: str
    """What made it."""
