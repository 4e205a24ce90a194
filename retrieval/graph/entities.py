"""Entities over all shards: which names mean the same, and what the chunks say of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from retrieval.graph.asks import Told
from retrieval.graph.types import Entity, EntityKind

MAX_DESCRIPTIONS = 3
"""Descriptions an entity carries."""


@dataclass(frozen=True, slots=True)
class FoundEntity:
    """An entity with the chunks that mention it."""

    entity: Entity
    """The entity."""
    chunk_ids: frozenset[str]
    """All of them."""


class Names:
    """Which names mean the same; a short form means the long form that most chunks explain it by."""

    def __init__(self, aliases: Iterable[Sequence[tuple[str, str, int]]]) -> None:
        """Join what every shard says: short form, long form, number of chunks."""
        counts: Counter[tuple[str, str]] = Counter()
        for told in aliases:
            for short, long, count in told:
                counts[short, long] += count
        best: dict[str, str] = {}
        for short, long in sorted(counts, key=lambda pair: (-counts[pair], pair[1])):
            best.setdefault(short, long)
        self._long = {short: _end(short, best) for short in best}
        self._shorts: dict[str, list[str]] = defaultdict(list)
        for short, long in sorted(self._long.items()):
            if short != long:
                self._shorts[long].append(short)

    def resolved(self, key: str) -> str:
        """Return the key of the entity that a name's key means."""
        return self._long.get(key, key)

    def names_of(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Return every name's key that means one of the entities."""
        return tuple(name for key in keys for name in (key, *self._shorts.get(key, ())))


def entities_of(names: Names, shards: Iterable[Sequence[Told]]) -> dict[str, FoundEntity]:
    """Return entities by key, in order of their keys, from what every shard says of their names."""
    told: dict[str, list[Told]] = defaultdict(list)
    for shard in shards:
        for one in shard:
            told[names.resolved(one.key)].append(one)
    return {key: _entity(key, told[key]) for key in sorted(told)}


def _end(short: str, best: Mapping[str, str]) -> str:
    """Follow explanations of explanations; a circle ends at its smallest key."""
    path = [short]
    while path[-1] in best:
        following = best[path[-1]]
        if following in path:
            return min(path[path.index(following) :])
        path.append(following)
    return path[-1]


def _entity(key: str, told: Sequence[Told]) -> FoundEntity:
    forms: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    descriptions: Counter[str] = Counter()
    for one in told:
        for name, kind, count in one.forms:
            forms[name] += count
            kinds[name][kind] += count
        for description, count in one.descriptions:
            descriptions[description] += count
    chunk_ids = frozenset(chunk_id for one in told for chunk_id in one.chunk_ids)
    ordered = sorted(forms, key=lambda name: (-forms[name], name))
    kind = min(kinds[ordered[0]], key=lambda kind: (-kinds[ordered[0]][kind], kind))
    best = sorted(descriptions, key=lambda text: (-descriptions[text], len(text), text))
    entity = Entity(
        key=key,
        name=ordered[0],
        kind=cast("EntityKind", kind),
        num_chunks=len(chunk_ids),
        also=tuple(ordered[1:]),
        descriptions=tuple(best[:MAX_DESCRIPTIONS]),
    )
    return FoundEntity(entity, chunk_ids)
