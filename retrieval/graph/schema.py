"""The tables of one index version's graph, beside its chunks in the shard's file.

    graph_state_n       the extractor that made it
    graph_pending_n     chunks not taken up yet; a trigger on `chunks_n` fills it
    graph_scopes_n      one a (tenant, library): entities of two never meet
    graph_chunks_n      chunks taken up, with the cause if extraction failed
    graph_mentions_n    entity by chunk
    graph_relations_n   pair of entities by chunk
    graph_aliases_n     short form and long form by chunk
    graph_communities_n, graph_members_n    groups of entities, by level

All but the communities belong to single chunks and leave with them, by a trigger in the transaction that
deletes the chunk: the graph never tells of a deleted document. Chunks come in through `graph_pending_n`, so
the graph is a cache of a prefix of the change log that can be made anew from the chunks at any time.
"""

from __future__ import annotations

import sqlite3

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
    clustered_at INTEGER NOT NULL DEFAULT -1,
    UNIQUE(tenant, library)
) STRICT;
CREATE TABLE graph_chunks_{n}(
    row_id INTEGER PRIMARY KEY, scope_id INTEGER NOT NULL, failure TEXT
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
CREATE TRIGGER graph_added_{n} AFTER INSERT ON chunks_{n} BEGIN
    INSERT INTO graph_pending_{n} VALUES (new.row_id);
END;
CREATE TRIGGER graph_removed_{n} AFTER DELETE ON chunks_{n} BEGIN
    UPDATE graph_scopes_{n} SET num_changes=num_changes+1
        WHERE scope_id=(SELECT scope_id FROM graph_chunks_{n} WHERE row_id=old.row_id);
    DELETE FROM graph_mentions_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_relations_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_aliases_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_chunks_{n} WHERE row_id=old.row_id;
    DELETE FROM graph_pending_{n} WHERE row_id=old.row_id;
END;
"""


def has_graph(db: sqlite3.Connection, number: int) -> bool:
    """Return whether a version has a graph."""
    sql = "SELECT 1 FROM sqlite_schema WHERE type='table' AND name=?"
    return db.execute(sql, (f"graph_state_{number}",)).fetchone() is not None


def create_graph(db: sqlite3.Connection, number: int, extractor: str) -> None:
    """Give a version an empty graph, every chunk pending; one made by another extractor is made anew.

    Args:
        db: A connection inside a transaction.
        number: The version.
        extractor: `Extractor.name`.
    """
    if has_graph(db, number):
        found = db.execute(f"SELECT value FROM graph_state_{number} WHERE key='extractor'").fetchone()
        if found is not None and found[0] == extractor:
            return
        drop_graph(db, number)
    pending = ""
    for line in _CREATE.format(n=number).splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            db.execute(pending)
            pending = ""
    db.execute(f"INSERT INTO graph_state_{number} VALUES ('extractor', ?)", (extractor,))
    db.execute(f"INSERT INTO graph_pending_{number} SELECT row_id FROM chunks_{number}")


def drop_graph(db: sqlite3.Connection, number: int) -> None:
    """Remove a version's graph, if it has one."""
    for trigger in ("added", "removed"):
        db.execute(f"DROP TRIGGER IF EXISTS graph_{trigger}_{number}")
    for table in _TABLES:
        db.execute(f"DROP TABLE IF EXISTS graph_{table}_{number}")
