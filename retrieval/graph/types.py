"""Values and seams of the graph index: what is extracted from a chunk, and what a question gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

GraphSource = Literal["none", "rules", "llm"]
"""What finds entities: nothing, the rules for English text, or a language model."""
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
    """A language model as the extractor needs it: a prompt to a text.

    Where shards are actors it travels to them, so it can be pickled.
    """

    @property
    def name(self) -> str:
        """Return what identifies the model: a graph made by another one is made anew."""
        ...

    async def complete(self, prompt: str, max_tokens: int) -> str:
        """Return the model's answer to a prompt, at most `max_tokens` long.

        Raises:
            TextModelUnavailable: It cannot answer now; the chunk waits and is tried again.
            TextModelRefused: It will never answer this prompt; the chunk fails with the cause.
        """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphAnswer:
    """How much of the libraries asked for an answer speaks of."""

    num_pending: int = 0
    """Chunks not taken up yet, counted up to 10,000 a shard; the answer lacks what they say."""
    partial: bool = False
    """True when a shard did not answer; `missing_shards` names it."""
    missing_shards: tuple[str, ...] = ()
    """Shards that did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entities(GraphAnswer):
    """Entities looked up by name."""

    entities: tuple[Entity, ...]
    """The one of exactly this name first, then those most mentioned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood(GraphAnswer):
    """What libraries know around some entities."""

    seeds: tuple[Entity, ...]
    """Entities asked for by name, then those found in the question, in its order."""
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
    library: str
    """The library it is of; no community spans two."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Communities(GraphAnswer):
    """Communities of one level."""

    communities: tuple[Community, ...]
    """Those that most chunks speak of first."""
    num_communities: int
    """How many there are at this level, those left out by the limit included."""
    num_levels: int
    """Levels there are; 0 without any community."""


@dataclass(frozen=True, slots=True)
class GraphStats:
    """How large the active version's graph is, over all tenants, and how far it has come."""

    source: GraphSource
    """What finds entities; `none` when no graph is kept."""
    extractor: str
    """What made it, exactly; empty without a graph."""
    num_chunks: int
    """Chunks taken up."""
    num_pending: int
    """Chunks not taken up yet."""
    num_failed: int
    """Chunks whose extraction failed; `retry_failed` queues them again."""
    num_entities: int
    """Names told apart, counted by library and shard."""
    num_relations: int
    """Relations of single chunks."""
    failure: str | None = None
    """Cause of one of the failures."""
