"""One shard's graph within a tenant's libraries, at one moment: the rows behind every answer.

Keys are as the chunks write them: which names mean the same is decided over all shards, in `entities.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from retrieval.graph.asks import Ask, Size, Told, ToldEdge

MAX_EDGE_CHUNKS = 10
"""Chunks an edge carries."""
MAX_PENDING_COUNTED = 10_000
"""Waiting chunks looked at to tell how many wait."""


class GraphRows:
    """What a version's chunks in one shard say, within one library of a tenant or all of them."""

    def __init__(self, db: sqlite3.Connection, number: int, tenant: str, library: str | None) -> None:
        """Look up the libraries.

        Args:
            db: A connection that sees one moment.
            number: The version; it has a graph.
            tenant: Whose libraries.
            library: One of them; None for all.
        """
        self._db = db
        self._number = number
        self._tenant = tenant
        self._library = library
        self._state = [
            tuple(row)
            for row in db.execute(
                f"SELECT scope_id, num_changes, num_chunks FROM graph_scopes_{number}"
                " WHERE tenant=:tenant AND (library=:library OR :library IS NULL) ORDER BY 1",
                {"tenant": tenant, "library": library},
            )
        ]
        self._scopes = json.dumps([scope_id for scope_id, _, _ in self._state])

    def answer(self, ask: Ask) -> Any:
        """Return what this shard says to a question; the types are those of the methods below."""
        match ask.what:
            case "size":
                return self.size()
            case "aliases":
                return self.aliases()
            case "known":
                return self.known(ask.names)
            case "keys":
                return self.keys(ask.names[0])
            case "connected":
                return self.connected(ask.names)
            case "mentions":
                return self.mentions(ask.names)
            case "relations":
                return self.relations()
            case "edges":
                return self.edges(ask.names)

    def size(self) -> Size:
        """Return how many chunks speak here and how many wait."""
        num_pending = self._db.execute(
            f"SELECT count(*) FROM (SELECT row_id FROM graph_pending_{self._number} LIMIT :limit)"
            f" JOIN chunks_{self._number} USING (row_id) JOIN documents USING (document_id)"
            " WHERE tenant=:tenant AND (library=:library OR :library IS NULL)",
            {"limit": MAX_PENDING_COUNTED, "tenant": self._tenant, "library": self._library},
        ).fetchone()[0]
        made = self._db.execute(f"SELECT value FROM graph_state_{self._number} WHERE key='made'").fetchone()
        num_chunks = sum(count for _, _, count in self._state)
        return Size(num_chunks, num_pending, json.dumps([made[0], self._state]))

    def aliases(self) -> list[tuple[str, str, int]]:
        """Return short form, long form, and how many chunks explain the one by the other."""
        return self._tuples(
            "SELECT short, long, count(*) FROM json_each(:scopes) AS s"
            f" CROSS JOIN graph_aliases_{self._number} ON scope_id=s.value GROUP BY short, long",
            (),
        )

    def known(self, names: Sequence[str]) -> list[str]:
        """Return those of some names' keys that a chunk mentions."""
        return [
            row[0]
            for row in self._tuples(
                "SELECT k.value FROM json_each(:names) AS k WHERE EXISTS (SELECT 1 FROM json_each(:scopes)"
                f" AS s CROSS JOIN graph_mentions_{self._number} AS m"
                " ON m.scope_id=s.value AND m.key=k.value)",
                names,
            )
        ]

    def keys(self, text: str) -> list[tuple[str, int]]:
        """Return the keys that hold a text, and how many chunks mention each."""
        rows = self._db.execute(
            "SELECT m.key, count(*) FROM json_each(:scopes) AS s"
            f" CROSS JOIN graph_mentions_{self._number} AS m ON m.scope_id=s.value"
            " WHERE instr(m.key, :text)>0 OR :text='' GROUP BY m.key",
            {"scopes": self._scopes, "text": text},
        )
        return [tuple(row) for row in rows]

    def connected(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Return the names that stand in a relation with some others, and its weight."""
        found: list[tuple[str, float]] = []
        for here, there in (("source", "target"), ("target", "source")):
            found += self._tuples(
                f"SELECT r.{there}, sum(r.weight) FROM json_each(:scopes) AS s CROSS JOIN json_each(:names)"
                f" AS k CROSS JOIN graph_relations_{self._number} AS r"
                f" ON r.scope_id=s.value AND r.{here}=k.value GROUP BY r.{there}",
                names,
            )
        return found

    def mentions(self, names: Sequence[str]) -> list[Told]:
        """Return what the chunks say of some names, of those that any mentions."""
        rows = self._db.execute(
            "SELECT m.key, m.name, m.kind, m.count, m.description, c.chunk_id FROM json_each(:scopes) AS s"
            f" CROSS JOIN json_each(:names) AS k CROSS JOIN graph_mentions_{self._number} AS m"
            " ON m.scope_id=s.value AND m.key=k.value"
            f" CROSS JOIN graph_chunks_{self._number} AS c ON c.row_id=m.row_id",
            {"scopes": self._scopes, "names": json.dumps(names)},
        )
        forms: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        descriptions: dict[str, Counter[str]] = defaultdict(Counter)
        chunk_ids: dict[str, list[str]] = defaultdict(list)
        for key, name, kind, count, description, chunk_id in rows:
            forms[key][name, kind] += count
            chunk_ids[key].append(chunk_id)
            if description is not None:
                descriptions[key][description] += 1
        return [
            Told(
                key,
                [(name, kind, count) for (name, kind), count in forms[key].items()],
                list(descriptions[key].items()) if key in descriptions else [],
                chunk_ids[key],
            )
            for key in forms
        ]

    def relations(self) -> list[tuple[str, str, str, float]]:
        """Return source, target, label and weight of every pair of names."""
        return self._tuples(
            "SELECT source, target, label, sum(weight) FROM json_each(:scopes) AS s"
            f" CROSS JOIN graph_relations_{self._number} ON scope_id=s.value GROUP BY 1, 2, 3",
            (),
        )

    def edges(self, names: Sequence[str]) -> list[ToldEdge]:
        """Return the relations whose ends are both among some names, with their first chunks."""
        rows = self._tuples(
            "SELECT r.source, r.target, r.label, r.weight, c.chunk_id FROM json_each(:scopes) AS s"
            f" CROSS JOIN json_each(:names) AS k CROSS JOIN graph_relations_{self._number} AS r"
            " ON r.scope_id=s.value AND r.source=k.value"
            f" CROSS JOIN graph_chunks_{self._number} AS c ON c.row_id=r.row_id"
            " WHERE r.target IN (SELECT value FROM json_each(:names))",
            names,
        )
        weights: dict[tuple[str, str, str], float] = defaultdict(float)
        chunk_ids: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for source, target, label, weight, chunk_id in rows:
            weights[source, target, label] += weight
            chunk_ids[source, target, label].append(chunk_id)
        return [
            ToldEdge(*edge, weight, sorted(set(chunk_ids[edge]))[:MAX_EDGE_CHUNKS])
            for edge, weight in weights.items()
        ]

    def _tuples(self, sql: str, names: Sequence[str]) -> list[Any]:
        values = {"scopes": self._scopes} | ({"names": json.dumps(names)} if ":names" in sql else {})
        return [tuple(row) for row in self._db.execute(sql, values)]
