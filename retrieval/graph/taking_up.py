"""Taking chunks up into a version's graph: which wait, and writing what was found in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.graph.names import entity_key
from retrieval.graph.types import CO_OCCURS, Extraction
from retrieval.truth.stored import chunk_id_of


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk the graph has not taken up."""

    row_id: int
    """Its row."""
    chunk_id: str
    """Its public id."""
    tenant: str
    """Whose it is."""
    library: str
    """Where its document is."""
    text: str
    """What to read."""


def pending(db: sqlite3.Connection, number: int, limit: int) -> list[PendingChunk]:
    """Return chunks that wait, oldest first."""
    rows = db.execute(
        "SELECT p.row_id, c.document_id, c.content_hash, c.ordinal, d.tenant, d.library, c.text"
        f" FROM graph_pending_{number} AS p"
        f" JOIN chunks_{number} AS c USING (row_id) JOIN documents AS d USING (document_id)"
        " ORDER BY p.row_id LIMIT ?",
        (limit,),
    )
    return [PendingChunk(row[0], chunk_id_of(row[1], row[2], row[3]), row[4], row[5], row[6]) for row in rows]


def take_up(
    db: sqlite3.Connection, number: int, chunks: Sequence[PendingChunk], extractions: Sequence[Extraction]
) -> int:
    """Write what was found in chunks that still wait; return how many did.

    A chunk deleted or taken up by another worker while it was read is left out.
    """
    scopes: dict[tuple[str, str], int] = {}
    num_taken = 0
    for chunk, found in zip(chunks, extractions, strict=True):
        if not db.execute(f"DELETE FROM graph_pending_{number} WHERE row_id=?", (chunk.row_id,)).rowcount:
            continue
        num_taken += 1
        place = (chunk.tenant, chunk.library)
        if place not in scopes:
            scopes[place] = _scope(db, number, *place)
        _write(db, number, scopes[place], chunk, found)
    return num_taken


def retry_failed(db: sqlite3.Connection, number: int) -> int:
    """Queue chunks whose extraction failed once more; return how many."""
    db.execute(
        f"INSERT OR IGNORE INTO graph_pending_{number}"
        f" SELECT row_id FROM graph_chunks_{number} WHERE failure IS NOT NULL"
    )
    db.execute(
        f"UPDATE graph_scopes_{number} AS s SET num_chunks=num_chunks-(SELECT count(*)"
        f" FROM graph_chunks_{number} AS c WHERE c.scope_id=s.scope_id AND failure IS NOT NULL)"
    )
    return db.execute(f"DELETE FROM graph_chunks_{number} WHERE failure IS NOT NULL").rowcount


def _scope(db: sqlite3.Connection, number: int, tenant: str, library: str) -> int:
    db.execute(
        f"INSERT OR IGNORE INTO graph_scopes_{number}(tenant, library) VALUES (?,?)", (tenant, library)
    )
    sql = f"SELECT scope_id FROM graph_scopes_{number} WHERE tenant=? AND library=?"
    return db.execute(sql, (tenant, library)).fetchone()[0]


def _write(
    db: sqlite3.Connection, number: int, scope_id: int, chunk: PendingChunk, found: Extraction
) -> None:
    row_id = chunk.row_id
    db.execute(
        f"INSERT INTO graph_chunks_{number} VALUES (?,?,?,?)",
        (row_id, scope_id, chunk.chunk_id, found.failure),
    )
    db.execute(
        f"UPDATE graph_scopes_{number} SET num_changes=num_changes+1, num_chunks=num_chunks+1"
        " WHERE scope_id=?",
        (scope_id,),
    )
    mentions: dict[str, tuple] = {}
    for mention in found.mentions:
        key = entity_key(mention.name)
        if key and key not in mentions:
            mentions[key] = (mention.name, mention.kind, mention.count, mention.description)
    relations: dict[tuple[str, str, str], float] = {}
    for relation in found.relations:
        source, target = entity_key(relation.source), entity_key(relation.target)
        if source == target or source not in mentions or target not in mentions:
            continue
        if relation.label == CO_OCCURS:
            source, target = min(source, target), max(source, target)
        pair = (source, target, relation.label)
        relations[pair] = relations.get(pair, 0.0) + relation.weight
    aliases = {(entity_key(alias.short), entity_key(alias.long)) for alias in found.aliases}
    db.executemany(
        f"INSERT INTO graph_mentions_{number} VALUES (?,?,?,?,?,?,?)",
        ((scope_id, key, row_id, *values) for key, values in mentions.items()),
    )
    db.executemany(
        f"INSERT INTO graph_relations_{number} VALUES (?,?,?,?,?,?)",
        ((scope_id, *pair, row_id, weight) for pair, weight in relations.items()),
    )
    db.executemany(
        f"INSERT INTO graph_aliases_{number} VALUES (?,?,?,?)",
        (
            (scope_id, short, long, row_id)
            for short, long in aliases
            if short != long and short in mentions and long in mentions
        ),
    )
