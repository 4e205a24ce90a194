"""Local search: the entities a question names, what they are connected with, and the chunks about them.

Source: local search of GraphRAG, Edge et al., arXiv 2404.16130; chunks are scored by the entities they share
with the question's neighbourhood, rare entities counting more.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from retrieval.graph.asks import Ask, Plan, Size, ToldEdge
from retrieval.graph.entities import FoundEntity, Names, entities_of
from retrieval.graph.names import entity_key
from retrieval.graph.rows import MAX_EDGE_CHUNKS
from retrieval.graph.types import CO_OCCURS, Edge, Neighbourhood
from retrieval.lexical import STOP_WORDS

MAX_NAME_WORDS = 8
"""Longest name looked up in a question, in words."""
MAX_QUESTION_WORDS = 400
"""Words of a question that are looked up; later ones are left out."""
MAX_CANDIDATES = 200
"""Connected entities that are weighed for rarity."""
_NEIGHBOUR_WEIGHT = 0.5
_WORD = re.compile(r"[^\s,;:?!()\[\]\"\u201c\u201d]+")


def neighbourhood(
    question: str, entities: Sequence[str], max_neighbours: int, max_chunks: int
) -> Plan[Neighbourhood]:
    """Return what is known around a question and some entities; empty when none of them is known.

    Args:
        question: Entities are found in it; empty for none.
        entities: Names of more, whole.
        max_neighbours: Most connected entities returned.
        max_chunks: Most chunks returned.
    """
    sizes: list[Size] = yield Ask("size")
    names = Names((yield Ask("aliases")))
    spans = _spans(question)
    given = [key for key in map(entity_key, entities) if key]
    known = {key for shard in (yield Ask("known", (*given, *spans.keys()))) for key in shard}
    linked = [*(key for key in given if key in known), *_linked(spans, known)]
    seeds = list(dict.fromkeys(map(names.resolved, linked)))
    strength: dict[str, float] = defaultdict(float)
    for shard in (yield Ask("connected", names.names_of(seeds))) if seeds else ():
        for name, weight in shard:
            strength[names.resolved(name)] += weight
    candidates = sorted(strength.keys() - set(seeds), key=lambda key: (-strength[key], key))
    candidates = candidates[:MAX_CANDIDATES]
    found = entities_of(names, (yield Ask("mentions", names.names_of([*seeds, *candidates]))))
    num_chunks = sum(size.num_chunks for size in sizes)
    rarity = {key: math.log1p(num_chunks / one.entity.num_chunks) for key, one in found.items()}
    neighbours = sorted(
        (key for key in candidates if key in found), key=lambda key: (-strength[key] * rarity[key], key)
    )[:max_neighbours]
    kept = {key: found[key] for key in [*seeds, *neighbours] if key in found}
    told = (yield Ask("edges", names.names_of(kept))) if kept else []
    return Neighbourhood(
        seeds=tuple(kept[key].entity for key in seeds if key in kept),
        neighbours=tuple(kept[key].entity for key in neighbours),
        edges=_edges(names, told),
        chunks=_chunks(kept, set(seeds), rarity, max_chunks),
        num_pending=sum(size.num_pending for size in sizes),
    )


def _spans(question: str) -> dict[str, list[tuple[int, int]]]:
    """Return by key where in a question a name may stand, as words from and to."""
    words = [match.group().rstrip(".") for match in _WORD.finditer(question)][:MAX_QUESTION_WORDS]
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for start in range(len(words)):
        for stop in range(start + 1, min(start + MAX_NAME_WORDS, len(words)) + 1):
            key = entity_key(" ".join(words[start:stop]))
            if key and key not in STOP_WORDS:
                spans[key].append((start, stop))
    return spans


def _linked(spans: Mapping[str, Sequence[tuple[int, int]]], known: Collection[str]) -> list[str]:
    """Return the known names of a question in its order; longer ones win over shorter."""
    places = [(start, -stop, key) for key, found in spans.items() if key in known for start, stop in found]
    keys, end = [], 0
    for start, stop, key in sorted(places):
        if start >= end:
            keys.append(key)
            end = -stop
    return keys


def _edges(names: Names, shards: Iterable[Sequence[ToldEdge]]) -> tuple[Edge, ...]:
    weights: dict[tuple[str, str, str], float] = defaultdict(float)
    chunk_ids: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for shard in shards:
        for told in shard:
            source, target = names.resolved(told.source), names.resolved(told.target)
            if source == target:
                continue
            if told.label == CO_OCCURS:
                source, target = min(source, target), max(source, target)
            weights[source, target, told.label] += told.weight
            chunk_ids[source, target, told.label].update(told.chunk_ids)
    ordered = sorted(weights, key=lambda edge: (-weights[edge], edge))
    return tuple(
        Edge(*edge, weights[edge], tuple(sorted(chunk_ids[edge])[:MAX_EDGE_CHUNKS])) for edge in ordered
    )


def _chunks(
    kept: Mapping[str, FoundEntity], seeds: Collection[str], rarity: Mapping[str, float], max_chunks: int
) -> tuple[tuple[str, float], ...]:
    scores: dict[str, float] = defaultdict(float)
    for key, one in kept.items():
        share = 1.0 if key in seeds else _NEIGHBOUR_WEIGHT
        for chunk_id in one.chunk_ids:
            scores[chunk_id] += share * rarity[key]
    best = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], chunk_id))[:max_chunks]
    return tuple((chunk_id, scores[chunk_id]) for chunk_id in best)
