"""Reading entities: which names mean the same, and what the chunks say of each."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from retrieval.graph.types import Entity, EntityKind
from retrieval.truth.stored import chunk_id_of

MAX_DESCRIPTIONS = 3
"""Descriptions an entity carries."""


@dataclass(frozen=True, slots=True)
class FoundEntity:
    """An entity with the rows that mention it."""

    entity: Entity
    """The entity."""
    uses: Mapping[int, int]
    """By row: how often it is mentioned there."""


def scopes_of(db: sqlite3.Connection, number: int, tenant: str, library: str | None) -> list[int]:
    """Return the tenant's scopes, of one library or of all."""
    sql = f"SELECT scope_id FROM graph_scopes_{number} WHERE tenant=? AND (library=? OR ? IS NULL) ORDER BY 1"
    return [row[0] for row in db.execute(sql, (tenant, library, library))]


class Graph:
    """A version's graph within some scopes at one moment; names resolve by the aliases of these scopes."""

    def __init__(self, db: sqlite3.Connection, number: int, scopes: Sequence[int]) -> None:
        """Read the aliases: a short form means the long form that most chunks explain it by."""
        self.db = db
        self.number = number
        self.scopes = json.dumps(list(scopes))
        best: dict[str, str] = {}
        for short, long, _ in db.execute(
            f"SELECT short, long, count(*) FROM graph_aliases_{number}"
            " WHERE scope_id IN (SELECT value FROM json_each(?)) GROUP BY short, long"
            " ORDER BY count(*) DESC, long",
            (self.scopes,),
        ):
            best.setdefault(short, long)
        self._long = {short: _end(short, best) for short in best}
        self._shorts: dict[str, list[str]] = defaultdict(list)
        for short, long in sorted(self._long.items()):
            if short != long:
                self._shorts[long].append(short)

    def resolved(self, key: str) -> str:
        """Return the key of the entity that a name's key means."""
        return self._long.get(key, key)

    def names_of(self, keys: Iterable[str]) -> list[str]:
        """Return every name's key that means one of the entities."""
        return [name for key in keys for name in (key, *self._shorts.get(key, ()))]

    def known(self, keys: Iterable[str]) -> set[str]:
        """Return those of some names' keys that a chunk mentions."""
        rows = self.db.execute(
            "SELECT k.value FROM json_each(?) AS k WHERE EXISTS (SELECT 1 FROM json_each(?) AS s"
            f" CROSS JOIN graph_mentions_{self.number} AS m ON m.scope_id=s.value AND m.key=k.value)",
            (json.dumps(list(keys)), self.scopes),
        )
        return {row[0] for row in rows}

    def entities(self, keys: Iterable[str]) -> dict[str, FoundEntity]:
        """Return entities by key; those that no chunk mentions are left out."""
        rows = self.db.execute(
            "SELECT m.key, m.row_id, m.name, m.kind, m.count, m.description"
            " FROM json_each(?) AS s CROSS JOIN json_each(?) AS k"
            f" CROSS JOIN graph_mentions_{self.number} AS m ON m.scope_id=s.value AND m.key=k.value",
            (self.scopes, json.dumps(self.names_of(keys))),
        )
        mentions: dict[str, list[sqlite3.Row]] = defaultdict(list)
        for row in rows:
            mentions[self.resolved(row[0])].append(row)
        return {key: _entity(key, found) for key, found in sorted(mentions.items())}

    def chunk_ids(self, row_ids: Iterable[int]) -> dict[int, str]:
        """Return public ids by row."""
        rows = self.db.execute(
            "SELECT row_id, document_id, content_hash, ordinal FROM json_each(?) AS r"
            f" JOIN chunks_{self.number} ON row_id=r.value",
            (json.dumps(sorted(set(row_ids))),),
        )
        return {row[0]: chunk_id_of(row[1], row[2], row[3]) for row in rows}


def _end(short: str, best: Mapping[str, str]) -> str:
    """Follow explanations of explanations; a circle ends at its smallest key."""
    path = [short]
    while path[-1] in best:
        following = best[path[-1]]
        if following in path:
            return min(path[path.index(following) :])
        path.append(following)
    return path[-1]


def _entity(key: str, mentions: Sequence[sqlite3.Row]) -> FoundEntity:
    forms: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    uses: Counter[int] = Counter()
    descriptions: Counter[str] = Counter()
    for _, row_id, name, kind, count, description in mentions:
        forms[name] += count
        kinds[name][kind] += count
        uses[row_id] += count
        if description is not None:
            descriptions[description] += 1
    ordered = sorted(forms, key=lambda name: (-forms[name], name))
    kind = min(kinds[ordered[0]], key=lambda kind: (-kinds[ordered[0]][kind], kind))
    told = sorted(descriptions, key=lambda text: (-descriptions[text], len(text), text))
    return FoundEntity(
        Entity(
            key=key,
            name=ordered[0],
            kind=cast("EntityKind", kind),
            num_chunks=len(uses),
            also=tuple(ordered[1:]),
            descriptions=tuple(told[:MAX_DESCRIPTIONS]),
        ),
        uses,
    )
