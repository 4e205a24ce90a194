"""The tables of one index version's graph, beside its chunks in the shard's file.

    graph_state_n       the extractor that made it, the form of its tables, when it was made
    graph_pending_n     chunks not taken up yet; a trigger on `chunks_n` fills it
    graph_scopes_n      one a (tenant, library): entities of two never meet
    graph_chunks_n      chunks taken up, with their public ids, and the cause if extraction failed
    graph_mentions_n    entity by chunk
    graph_relations_n   pair of entities by chunk
    graph_aliases_n     short form and long form by chunk
    graph_communities_n, graph_members_n    groups of entities, by level

All but the communities belong to single chunks and leave with them, by a trigger in the transaction that
deletes the chunk; so do members of communities that no chunk mentions any more: the graph never tells of a
deleted document. Chunks come in through `graph_pending_n`, so
the graph is a cache of a prefix of the change log that can be made anew from the chunks at any time.
"""

from __future__ import annotations

import sqlite3
import time

_FORM = "2"
"""Edition of these tables; those of another one are made anew."""
_TABLES = (
    "mentions",
    "relations",
    "aliases",
    "chunks",
    "pending",
    "members",
    "communities",
    "scopes",
    "state",
)

_CREATE = """
CREATE TABLE graph_state_{n}(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE graph_pending_{n}(row_id INTEGER PRIMARY KEY) STRICT;
CREATE TABLE graph_scopes_{n}(
    scope_id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    library TEXT NOT NULL,
    num_changes INTEGER NOT NULL DEFAULT 0,
    num_chunks INTEGER NOT NULL DEFAULT 0,
    clustered_at INTEGER NOT NULL DEFAULT -1,
    UNIQUE(tenant, library)
) STRICT;
CREATE TABLE graph_chunks_{n}(
    row_id INTEGER PRIMARY KEY, scope_id INTEGER NOT NULL, chunk_id TEXT NOT NULL, failure TEXT
) STRICT;
CREATE TABLE graph_mentions_{n}(
    scope_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    count INTEGER NOT NULL,
    description TEXT,
    PRIMARY KEY(scope_id, key, row_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_mentions_{n}_by_row ON graph_mentions_{n}(row_id);
CREATE TABLE graph_relations_{n}(
    scope_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    label TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY(scope_id, source, target, label, row_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_relations_{n}_by_target ON graph_relations_{n}(scope_id, target, source, label, weight);
CREATE INDEX graph_relations_{n}_by_row ON graph_relations_{n}(row_id);
CREATE TABLE graph_aliases_{n}(
    scope_id INTEGER NOT NULL,
    short TEXT NOT NULL,
    long TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    PRIMARY KEY(scope_id, short, long, row_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_aliases_{n}_by_row ON graph_aliases_{n}(row_id);
CREATE INDEX graph_aliases_{n}_by_long ON graph_aliases_{n}(scope_id, long);
CREATE TABLE graph_communities_{n}(
    scope_id INTEGER NOT NULL,
    community_id TEXT NOT NULL,
    level INTEGER NOT NULL,
    parent_id TEXT,
    PRIMARY KEY(scope_id, community_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE graph_members_{n}(
    scope_id INTEGER NOT NULL,
    community_id TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY(scope_id, community_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_members_{n}_by_key ON graph_members_{n}(scope_id, key);
CREATE TRIGGER graph_removed_{n} AFTER DELETE ON chunks_{n} BEGIN
    UPDATE graph_scopes_{n} SET num_changes=num_changes+1, num_chunks=num_chunks-1
        WHERE scope_id=(SELECT scope_id FROM graph_chunks_{n} WHERE row_id=old.row_id);
    DELETE FROM graph_members_{n} WHERE (scope_id, key) IN (
        SELECT scope_id, key FROM graph_mentions_{n} AS m WHERE m.row_id=old.row_id AND NOT EXISTS (
            SELECT 1 FROM graph_mentions_{n} AS other
            WHERE other.scope_id=m.scope_id AND other.key=m.key AND other.row_id<>m.row_id));
    DELETE FROM graph_mentions_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_relations_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_aliases_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_chunks_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_pending_{n} WHERE row_id=old.row_id;
END;
"""


_FOLLOW = """CREATE TRIGGER graph_added_{n} AFTER INSERT ON chunks_{n} BEGIN
    INSERT INTO graph_pending_{n} VALUES (new.row_id);
END"""


def has_graph(db: sqlite3.Connection, number: int) -> bool:
    """Return whether a version has a graph."""
    return _is_there(db, "table", f"graph_state_{number}")


def create_graph(db: sqlite3.Connection, number: int, extractor: str) -> None:
    """Have a version's graph follow its chunks; one made by another extractor, or none, is begun empty.

    A graph that did not follow for a while queues the chunks it has missed.

    Args:
        db: A connection inside a transaction.
        number: The version.
        extractor: `Extractor.name`.
    """
    if has_graph(db, number):
        rows = db.execute(f"SELECT key, value FROM graph_state_{number}").fetchall()
        state = dict(map(tuple, rows))
        if state.get("extractor") != extractor or state.get("form") != _FORM:
            drop_graph(db, number)
    if not has_graph(db, number):
        pending = ""
        for line in _CREATE.format(n=number).splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                db.execute(pending)
                pending = ""
        state = {"extractor": extractor, "form": _FORM, "made": str(time.time_ns())}
        db.executemany(f"INSERT INTO graph_state_{number} VALUES (?,?)", state.items())
    if not _is_there(db, "trigger", f"graph_added_{number}"):
        db.execute(
            f"INSERT OR IGNORE INTO graph_pending_{number} SELECT row_id FROM chunks_{number}"
            f" WHERE row_id NOT IN (SELECT row_id FROM graph_chunks_{number})"
        )
        db.execute(_FOLLOW.format(n=number))


def pause_graph(db: sqlite3.Connection, number: int) -> None:
    """Let a version's graph, if it has one, follow deletions only: true, and free on ingest."""
    db.execute(f"DROP TRIGGER IF EXISTS graph_added_{number}")


def drop_graph(db: sqlite3.Connection, number: int) -> None:
    """Remove a version's graph, if it has one."""
    for trigger in ("added", "removed"):
        db.execute(f"DROP TRIGGER IF EXISTS graph_{trigger}_{number}")
    for table in _TABLES:
        db.execute(f"DROP TABLE IF EXISTS graph_{table}_{number}")


def _is_there(db: sqlite3.Connection, kind: str, name: str) -> bool:
    sql = "SELECT 1 FROM sqlite_schema WHERE type=? AND name=?"
    return db.execute(sql, (kind, name)).fetchone() is not None
