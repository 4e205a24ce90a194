"""Communities: groups of entities that belong together, on several levels, by the Leiden algorithm.

They are a function of the graph alone (sorted edges, a fixed seed), so a graph that grew step by step has the
same ones as a graph made at once. They are computed on demand when a library has changed.

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

from retrieval.graph.entities import FoundEntity, Graph
from retrieval.graph.types import Community

MAX_COMMUNITY_CHUNKS = 50
"""Chunks a community carries."""


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


def edges_of(graph: Graph) -> list[tuple[str, str, float]]:
    """Return the connections of entities in some scopes, each pair once, sorted."""
    weights: dict[tuple[str, str], float] = defaultdict(float)
    rows = graph.db.execute(
        f"SELECT source, target, sum(weight) FROM graph_relations_{graph.number}"
        " WHERE scope_id IN (SELECT value FROM json_each(?)) GROUP BY source, target",
        (graph.scopes,),
    )
    for source, target, weight in rows:
        left, right = sorted((graph.resolved(source), graph.resolved(target)))
        if left != right:
            weights[left, right] += weight
    return [(*pair, weights[pair]) for pair in sorted(weights)]


def grouped(edges: Sequence[tuple[str, str, float]], clustering: Clustering) -> list[Grouping]:
    """Return the communities of all levels, coarse before fine."""
    if not edges:
        return []
    # The extension module ships no type stubs.
    found = graspologic_native.hierarchical_leiden(  # pyright: ignore[reportAttributeAccessIssue]
        edges=list(edges),
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


def stale_scopes(db: sqlite3.Connection, number: int) -> list[tuple[int, int]]:
    """Return (scope, changes so far) of the scopes whose communities are older than their graph."""
    rows = db.execute(
        f"SELECT scope_id, num_changes FROM graph_scopes_{number} WHERE clustered_at<>num_changes ORDER BY 1"
    )
    return [tuple(row) for row in rows]


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


def read(db: sqlite3.Connection, number: int, scope_id: int, level: int) -> list[Community]:
    """Return a scope's communities at a level, with those of coarser levels that were not divided further.

    Entities whose last mention is gone are left out, and so is a community without any left.
    """
    graph = Graph(db, number, [scope_id])
    places = db.execute(
        f"SELECT c.community_id, c.level, c.parent_id FROM graph_communities_{number} AS c"
        " WHERE c.scope_id=:scope AND (c.level=:level OR (c.level<:level AND c.community_id NOT IN ("
        f"SELECT parent_id FROM graph_communities_{number}"
        " WHERE scope_id=:scope AND parent_id IS NOT NULL)))",
        {"scope": scope_id, "level": level},
    ).fetchall()
    # Divided or not, an entity is in one of these communities only.
    home = dict(
        map(
            tuple,
            db.execute(
                f"SELECT key, community_id FROM graph_members_{number} WHERE scope_id=?"
                " AND community_id IN (SELECT value FROM json_each(?))",
                (scope_id, json.dumps([place[0] for place in places])),
            ),
        )
    )
    members: dict[str, list[FoundEntity]] = defaultdict(list)
    for key, one in graph.entities(home).items():
        members[home[key]].append(one)
    told = _inner_relations(graph, home)
    chunk_ids = graph.chunk_ids(row_id for found in members.values() for one in found for row_id in one.uses)
    communities = [
        _community(community_id, level, parent_id, members[community_id], told[community_id], chunk_ids)
        for community_id, level, parent_id in map(tuple, places)
        if community_id in members
    ]
    return sorted(communities, key=lambda one: (-one.num_chunks, one.community_id))


def _inner_relations(graph: Graph, home: Mapping[str, str]) -> dict[str, list[tuple]]:
    """Return, by community, the relations whose ends are both in it."""
    told: dict[str, list[tuple]] = defaultdict(list)
    rows = graph.db.execute(
        f"SELECT source, target, label, sum(weight) FROM graph_relations_{graph.number}"
        " WHERE scope_id IN (SELECT value FROM json_each(?)) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        (graph.scopes,),
    )
    for row in rows:
        community_id = home.get(graph.resolved(row[0]))
        if community_id is not None and community_id == home.get(graph.resolved(row[1])):
            told[community_id].append(tuple(row))
    return told


def _community(
    community_id: str,
    level: int,
    parent_id: str | None,
    members: Sequence[FoundEntity],
    told: Sequence[tuple],
    chunk_ids: Mapping[int, str],
) -> Community:
    shared = Counter(row_id for one in members for row_id in one.uses)
    ordered = sorted(shared, key=lambda row_id: (-shared[row_id], row_id))
    entities = sorted((one.entity for one in members), key=lambda entity: (-entity.num_chunks, entity.key))
    # What a report about the community is written from.
    basis = [told, [entity.key for entity in entities], sorted(chunk_ids[row_id] for row_id in ordered)]
    return Community(
        community_id=community_id,
        level=level,
        parent_id=parent_id,
        digest=hashlib.sha256(json.dumps(basis).encode()).hexdigest()[:16],
        entities=tuple(entities),
        chunk_ids=tuple(chunk_ids[row_id] for row_id in ordered[:MAX_COMMUNITY_CHUNKS]),
        num_chunks=len(ordered),
    )


def _community_id(level: int, keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join([str(level), *sorted(keys)]).encode()).hexdigest()[:16]
