"""Local search: the entities a question names, what they are connected with, and the chunks about them.

Source: local search of GraphRAG, Edge et al., arXiv 2404.16130; chunks are scored by the entities they share
with the question's neighbourhood, rare entities counting more.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Mapping

from retrieval.graph.entities import FoundEntity, Graph, scopes_of
from retrieval.graph.names import entity_key
from retrieval.graph.types import CO_OCCURS, Edge, Neighbourhood
from retrieval.lexical import STOP_WORDS

MAX_NAME_WORDS = 8
"""Longest name looked up in a question, in words."""
MAX_QUESTION_WORDS = 400
"""Words of a question that are looked up; later ones are left out."""
MAX_CANDIDATES = 200
"""Connected entities that are weighed for rarity."""
MAX_EDGE_CHUNKS = 10
"""Chunks an edge carries."""
_NEIGHBOUR_WEIGHT = 0.5
_WORD = re.compile(r"[^\s,;:?!()\[\]\"\u201c\u201d]+")


def neighbourhood(
    db: sqlite3.Connection,
    number: int,
    question: str,
    tenant: str,
    library: str | None,
    max_neighbours: int,
    max_chunks: int,
) -> Neighbourhood:
    """Return what a version's graph knows around a question; empty when it names nothing known."""
    graph = Graph(db, number, scopes_of(db, number, tenant, library))
    seeds = linked(graph, question)
    strength = _connected(graph, seeds)
    candidates = sorted(strength, key=lambda key: (-strength[key], key))[:MAX_CANDIDATES]
    found = graph.entities([*seeds, *candidates])
    rarity = _rarity(graph, found)
    neighbours = sorted(
        (key for key in candidates if key in found), key=lambda key: (-strength[key] * rarity[key], key)
    )[:max_neighbours]
    kept = {key: found[key] for key in [*seeds, *neighbours] if key in found}
    edges = _edges(graph, kept)
    chunks = _chunks(graph, kept, set(seeds), rarity, max_chunks)
    return Neighbourhood(
        seeds=tuple(kept[key].entity for key in seeds if key in kept),
        neighbours=tuple(kept[key].entity for key in neighbours),
        edges=edges,
        chunks=chunks,
    )


def linked(graph: Graph, question: str) -> list[str]:
    """Return the keys of the entities a question names, in its order; longer names win over shorter."""
    words = [match.group().rstrip(".") for match in _WORD.finditer(question)][:MAX_QUESTION_WORDS]
    spans: dict[tuple[int, int], str] = {}
    for start in range(len(words)):
        for stop in range(start + 1, min(start + MAX_NAME_WORDS, len(words)) + 1):
            key = entity_key(" ".join(words[start:stop]))
            if key and key not in STOP_WORDS:
                spans[start, stop] = key
    known = graph.known(set(spans.values()))
    keys: list[str] = []
    start = 0
    while start < len(words):
        stops = range(min(start + MAX_NAME_WORDS, len(words)), start, -1)
        stop = next((stop for stop in stops if spans.get((start, stop)) in known), None)
        if stop is not None:
            keys.append(graph.resolved(spans[start, stop]))
        start = start + 1 if stop is None else stop
    return list(dict.fromkeys(keys))


def _connected(graph: Graph, seeds: list[str]) -> dict[str, float]:
    """Return by key the weight of the connections to any seed."""
    names = json.dumps(graph.names_of(seeds))
    strength: dict[str, float] = defaultdict(float)
    for here, there in (("source", "target"), ("target", "source")):
        rows = graph.db.execute(
            f"SELECT r.{there}, sum(r.weight) FROM json_each(?) AS s CROSS JOIN json_each(?) AS k"
            f" CROSS JOIN graph_relations_{graph.number} AS r ON r.scope_id=s.value AND r.{here}=k.value"
            f" GROUP BY r.{there}",
            (graph.scopes, names),
        )
        for name, weight in rows:
            strength[graph.resolved(name)] += weight
    return {key: weight for key, weight in strength.items() if key not in seeds}


def _rarity(graph: Graph, found: Mapping[str, FoundEntity]) -> dict[str, float]:
    num_chunks = graph.db.execute(
        f"SELECT count(*) FROM graph_chunks_{graph.number}"
        " WHERE scope_id IN (SELECT value FROM json_each(?))",
        (graph.scopes,),
    ).fetchone()[0]
    return {key: math.log1p(num_chunks / one.entity.num_chunks) for key, one in found.items()}


def _edges(graph: Graph, kept: Mapping[str, FoundEntity]) -> tuple[Edge, ...]:
    names = json.dumps(graph.names_of(kept))
    rows = graph.db.execute(
        "SELECT r.source, r.target, r.label, r.row_id, r.weight FROM json_each(:scopes) AS s"
        f" CROSS JOIN json_each(:names) AS k CROSS JOIN graph_relations_{graph.number} AS r"
        " ON r.scope_id=s.value AND r.source=k.value"
        " WHERE r.target IN (SELECT value FROM json_each(:names)) ORDER BY r.row_id",
        {"scopes": graph.scopes, "names": names},
    )
    weights: dict[tuple[str, str, str], float] = defaultdict(float)
    row_ids: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for source, target, label, row_id, weight in rows:
        source, target = graph.resolved(source), graph.resolved(target)
        if source == target:
            continue
        if label == CO_OCCURS:
            source, target = min(source, target), max(source, target)
        weights[source, target, label] += weight
        known = row_ids[source, target, label]
        if len(known) < MAX_EDGE_CHUNKS and row_id not in known:
            known.append(row_id)
    chunk_ids = graph.chunk_ids(row_id for known in row_ids.values() for row_id in known)
    ordered = sorted(weights, key=lambda edge: (-weights[edge], edge))
    return tuple(
        Edge(*edge, weights[edge], tuple(chunk_ids[row_id] for row_id in row_ids[edge])) for edge in ordered
    )


def _chunks(
    graph: Graph,
    kept: Mapping[str, FoundEntity],
    seeds: set[str],
    rarity: Mapping[str, float],
    max_chunks: int,
) -> tuple[tuple[str, float], ...]:
    scores: dict[int, float] = defaultdict(float)
    for key, one in kept.items():
        share = 1.0 if key in seeds else _NEIGHBOUR_WEIGHT
        for row_id in one.uses:
            scores[row_id] += share * rarity[key]
    best = sorted(scores, key=lambda row_id: (-scores[row_id], row_id))[:max_chunks]
    chunk_ids = graph.chunk_ids(best)
    return tuple((chunk_ids[row_id], scores[row_id]) for row_id in best)
