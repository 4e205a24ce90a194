"""Entities by name: the one of exactly this name, those whose names hold it, or those most mentioned."""

from __future__ import annotations

from collections import Counter

from retrieval.graph.asks import Ask, Plan, Size
from retrieval.graph.entities import Names, entities_of
from retrieval.graph.names import entity_key
from retrieval.graph.types import Entities


def lookup(name: str, limit: int) -> Plan[Entities]:
    """Return entities by a name or a part of one; those most mentioned for an empty one.

    Args:
        name: Any form of it; case, hyphens, articles and plurals do not count.
        limit: Most entities returned.
    """
    sizes: list[Size] = yield Ask("size")
    names = Names((yield Ask("aliases")))
    wanted = entity_key(name)
    mentions: Counter[str] = Counter()
    for shard in (yield Ask("keys", (wanted,))) if wanted or not name.strip() else ():
        for key, count in shard:
            mentions[names.resolved(key)] += count
    exact = names.resolved(wanted)
    ordered = sorted(mentions, key=lambda key: (key != exact, -mentions[key], key))[:limit]
    found = entities_of(names, (yield Ask("mentions", names.names_of(ordered))))
    return Entities(
        entities=tuple(found[key].entity for key in ordered if key in found),
        num_pending=sum(size.num_pending for size in sizes),
    )
