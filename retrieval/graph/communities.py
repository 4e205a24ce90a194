"""Communities: groups of entities that belong together, on several levels, by the Leiden algorithm.

They are a function of the graph alone (sorted edges, a fixed seed), so a graph that grew step by step, or
lies in several shards, has the same ones as a graph made at once. They are computed when they are asked for
and the graph has changed.

Source: Traag, Waltman and van Eck, From Louvain to Leiden, 2019; hierarchy as in GraphRAG, arXiv 2404.16130:
a community above the size limit is divided again by itself.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import graspologic_native

from retrieval.graph.asks import Ask, Plan, Size
from retrieval.graph.entities import FoundEntity, Names, entities_of
from retrieval.graph.types import Communities, Community

MAX_COMMUNITY_CHUNKS = 50
"""Chunks a community carries."""

Edges = list[tuple[str, str, float]]
"""Pairs of entities and the weight of their connection, each pair once, sorted."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """How communities are made."""

    max_size: int = 20
    """Larger communities are divided again, level by level."""
    resolution: float = 1.0
    """Higher values make more and smaller communities."""
    seed: int = 7
    """Makes the algorithm's random choices the same every time."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The members of one community."""

    community_id: str
    """Hash of its level and members."""
    level: int
    """0 is the coarsest."""
    parent_id: str | None
    """The community it is a part of."""
    keys: tuple[str, ...]
    """Its members, sorted."""


def edges() -> Plan[Edges]:
    """Return the connections of the entities of a library."""
    names = Names((yield Ask("aliases")))
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for shard in (yield Ask("relations")):
        for source, target, _, weight in shard:
            left, right = sorted((names.resolved(source), names.resolved(target)))
            if left != right:
                weights[left, right] += weight
    return [(*pair, weights[pair]) for pair in sorted(weights)]


def grouped(edges: Edges, clustering: Clustering) -> list[Grouping]:
    """Return the communities of all levels, coarse before fine."""
    if not edges:
        return []
    # The extension module ships no type stubs.
    found = graspologic_native.hierarchical_leiden(  # pyright: ignore[reportAttributeAccessIssue]
        edges=edges,
        starting_communities=None,
        resolution=clustering.resolution,
        max_cluster_size=clustering.max_size,
        seed=clustering.seed,
    )
    members: dict[tuple[int, int], list[str]] = defaultdict(list)
    parents: dict[tuple[int, int], int | None] = {}
    for entry in found:
        members[entry.level, entry.cluster].append(entry.node)
        parents[entry.level, entry.cluster] = entry.parent_cluster
    ids = {place: _community_id(place[0], keys) for place, keys in members.items()}
    groupings = []
    for level, cluster in members:
        parent = parents[level, cluster]
        groupings.append(
            Grouping(
                ids[level, cluster],
                level,
                None if parent is None else ids[level - 1, parent],
                tuple(sorted(members[level, cluster])),
            )
        )
    return sorted(groupings, key=lambda one: (one.level, one.keys))


def stale_scope(db: sqlite3.Connection, number: int, tenant: str, library: str) -> tuple[int, int] | None:
    """Return (scope, changes so far) of a library whose communities are older than its graph; else None."""
    row = db.execute(
        f"SELECT scope_id, num_changes FROM graph_scopes_{number}"
        " WHERE tenant=? AND library=? AND clustered_at<>num_changes",
        (tenant, library),
    ).fetchone()
    return None if row is None else tuple(row)


def write(
    db: sqlite3.Connection, number: int, scope_id: int, num_changes: int, groupings: Iterable[Grouping]
) -> None:
    """Put a scope's communities in place of its old ones; `num_changes` says what they reflect."""
    for table in ("members", "communities"):
        db.execute(f"DELETE FROM graph_{table}_{number} WHERE scope_id=?", (scope_id,))
    for one in groupings:
        db.execute(
            f"INSERT INTO graph_communities_{number} VALUES (?,?,?,?)",
            (scope_id, one.community_id, one.level, one.parent_id),
        )
        db.executemany(
            f"INSERT INTO graph_members_{number} VALUES (?,?,?)",
            ((scope_id, one.community_id, key) for key in one.keys),
        )
    db.execute(f"UPDATE graph_scopes_{number} SET clustered_at=? WHERE scope_id=?", (num_changes, scope_id))


def stored(db: sqlite3.Connection, number: int, tenant: str, library: str) -> list[Grouping]:
    """Return a library's communities of all levels as they were written last, coarse before fine."""
    rows = db.execute(
        f"SELECT community_id, level, parent_id, key FROM graph_scopes_{number}"
        f" JOIN graph_communities_{number} USING (scope_id)"
        f" JOIN graph_members_{number} USING (scope_id, community_id) WHERE tenant=? AND library=?",
        (tenant, library),
    )
    places: dict[str, tuple[int, str | None]] = {}
    keys: dict[str, list[str]] = defaultdict(list)
    for community_id, level, parent_id, key in rows:
        places[community_id] = (level, parent_id)
        keys[community_id].append(key)
    found = [Grouping(one, *places[one], tuple(sorted(keys[one]))) for one in places]
    return sorted(found, key=lambda one: (one.level, one.keys))


def at_level(groupings: Sequence[Grouping], level: int) -> list[Grouping]:
    """Return the communities of a level, with those of coarser levels that were not divided further."""
    divided = {one.parent_id for one in groupings}
    return [
        one
        for one in groupings
        if one.level == level or (one.level < level and one.community_id not in divided)
    ]


def describe(library: str, groupings: Sequence[Grouping], level: int, limit: int) -> Plan[Communities]:
    """Return a library's communities at a level, those that most chunks speak of first.

    Entities whose last mention is gone are left out, and so is a community without any left.

    Args:
        library: Its name.
        groupings: Its communities of all levels.
        level: 0 for the coarsest.
        limit: Most communities returned.
    """
    sizes: list[Size] = yield Ask("size")
    places = at_level(groupings, level)
    # Divided or not, an entity is in one of these communities only.
    home = {key: one.community_id for one in places for key in one.keys}
    names = Names((yield Ask("aliases")))
    members: dict[str, list[FoundEntity]] = defaultdict(list)
    for key, one in entities_of(names, (yield Ask("mentions", names.names_of(home)))).items():
        if key in home:
            members[home[key]].append(one)
    shared = {
        community_id: Counter(chunk_id for one in found for chunk_id in one.chunk_ids)
        for community_id, found in members.items()
    }
    largest = sorted(
        (one for one in places if one.community_id in members),
        key=lambda one: (-len(shared[one.community_id]), one.community_id),
    )
    told = _inner_relations(names, home, (yield Ask("relations")))
    return Communities(
        communities=tuple(
            _community(
                library, one, members[one.community_id], told[one.community_id], shared[one.community_id]
            )
            for one in largest[:limit]
        ),
        num_communities=len(largest),
        num_levels=max((one.level + 1 for one in groupings), default=0),
        num_pending=sum(size.num_pending for size in sizes),
    )


def joined(parts: Sequence[Communities], limit: int) -> Communities:
    """Return the communities of several libraries as one answer."""
    every = [one for part in parts for one in part.communities]
    every.sort(key=lambda one: (-one.num_chunks, one.community_id, one.library))
    return Communities(
        communities=tuple(every[:limit]),
        num_communities=sum(part.num_communities for part in parts),
        num_levels=max((part.num_levels for part in parts), default=0),
        num_pending=sum(part.num_pending for part in parts),
    )


def _inner_relations(
    names: Names, home: Mapping[str, str], shards: Iterable[Sequence[tuple[str, str, str, float]]]
) -> dict[str, list[tuple[str, str, str, float]]]:
    """Return, by community, the relations whose ends are both in it."""
    weights: dict[tuple[str, str, str], float] = defaultdict(float)
    for shard in shards:
        for source, target, label, weight in shard:
            weights[source, target, label] += weight
    told: dict[str, list[tuple[str, str, str, float]]] = defaultdict(list)
    for source, target, label in sorted(weights):
        community_id = home.get(names.resolved(source))
        if community_id is not None and community_id == home.get(names.resolved(target)):
            told[community_id].append((source, target, label, weights[source, target, label]))
    return told


def _community(
    library: str,
    grouping: Grouping,
    members: Sequence[FoundEntity],
    told: Sequence[tuple[str, str, str, float]],
    shared: Counter[str],
) -> Community:
    ordered = sorted(shared, key=lambda chunk_id: (-shared[chunk_id], chunk_id))
    entities = sorted((one.entity for one in members), key=lambda entity: (-entity.num_chunks, entity.key))
    # What a report about the community is written from.
    basis = [told, [entity.key for entity in entities], sorted(ordered)]
    return Community(
        community_id=grouping.community_id,
        library=library,
        level=grouping.level,
        parent_id=grouping.parent_id,
        digest=hashlib.sha256(json.dumps(basis).encode()).hexdigest()[:16],
        entities=tuple(entities),
        chunk_ids=tuple(ordered[:MAX_COMMUNITY_CHUNKS]),
        num_chunks=len(ordered),
    )


def _community_id(level: int, keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join([str(level), *sorted(keys)]).encode()).hexdigest()[:16]
