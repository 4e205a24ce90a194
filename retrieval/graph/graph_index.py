"""The graph of one index version: takes chunks up as they come, and answers from what they say.

Everything lives in the shard's SQLite file (`schema.py`). Chunks are taken up in small transactions, so a
crash loses at most the work on one batch; deletions are in the transaction that deletes the chunk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from retrieval.graph import communities, taking_up
from retrieval.graph.asks import Ask, Plan, run_here
from retrieval.graph.lookup import lookup
from retrieval.graph.neighbourhood import neighbourhood
from retrieval.graph.rows import GraphRows
from retrieval.graph.schema import create_graph, drop_graph
from retrieval.graph.types import Communities, Entities, Extractor, GraphStats, Neighbourhood

_Answer = TypeVar("_Answer")
BATCH_CHUNKS = 64
"""Chunks extracted and written at once."""


class GraphDatabase(Protocol):
    """A shard's file: `retrieval.truth.database.Database`."""

    def read(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return a connection that sees one moment."""
        ...

    def write(self, *, durable: bool = True) -> AbstractContextManager[sqlite3.Connection]:
        """Return the writing connection inside a transaction."""
        ...


class GraphIndex:
    """Entities, relations and communities of one version's chunks. Belongs to one event loop."""

    def __init__(
        self,
        database: GraphDatabase,
        version_number: int,
        extractor: Extractor,
        clustering: communities.Clustering | None = None,
    ) -> None:
        """Name the parts; `open` makes the tables.

        Args:
            database: The shard's file.
            version_number: The index version whose chunks are read.
            extractor: Finds entities in them.
            clustering: How communities are made; None for the defaults.
        """
        self._database = database
        self._number = version_number
        self._extractor = extractor
        self._clustering = clustering or communities.Clustering()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Make the tables, every chunk pending, unless this extractor's graph is here already."""
        await self._write(lambda db: create_graph(db, self._number, self._extractor.name))

    async def drop(self) -> None:
        """Remove the graph; the chunks stay."""
        await self._write(lambda db: drop_graph(db, self._number))

    async def follow(self, max_chunks: int | None = None) -> int:
        """Take up chunks that wait, and return how many.

        Args:
            max_chunks: Most chunks taken up; None for all that wait.

        Raises:
            TextModelUnavailable: The extractor's model cannot answer now; the chunks still wait.
            StorageFull: The disk has no room; chunks not taken up still wait.
        """
        num_taken = 0
        while max_chunks is None or num_taken < max_chunks:
            limit = BATCH_CHUNKS if max_chunks is None else min(BATCH_CHUNKS, max_chunks - num_taken)
            num_found, num_new = await self._follow_batch(limit)
            num_taken += num_new
            if num_found < limit:
                break
        return num_taken

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more, and return how many."""
        return await self._write(lambda db: taking_up.retry_failed(db, self._number))

    async def entities(
        self, name: str = "", *, tenant: str, library: str | None = None, limit: int = 20
    ) -> Entities:
        """Return entities by a name or a part of one; those most mentioned for an empty one."""
        return await self._plan(lookup(name, limit), tenant, library)

    async def neighbourhood(
        self,
        question: str = "",
        *,
        tenant: str,
        entities: Sequence[str] = (),
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
    ) -> Neighbourhood:
        """Return what is known around entities and those a question names; empty when none is known."""
        plan = neighbourhood(question, entities, max_neighbours, max_chunks)
        return await self._plan(plan, tenant, library)

    async def communities(
        self, *, tenant: str, library: str | None = None, level: int = 0, limit: int = 100
    ) -> Communities:
        """Return communities of what was taken up so far, those that most chunks speak of first.

        Args:
            tenant: Whose libraries.
            library: One of them; None for all, each by itself.
            level: 0 for the coarsest; deeper levels also have the communities that were not divided.
            limit: Most communities returned.
        """
        names = await self.libraries(tenant) if library is None else [library]
        parts = []
        for name in names:
            await self._cluster(tenant, name)
            found = await self._read(lambda db, name=name: communities.stored(db, self._number, tenant, name))
            plan = communities.describe(name, found, level, limit)
            parts.append(await self._plan(plan, tenant, name))
        return communities.joined(parts, limit)

    async def libraries(self, tenant: str) -> list[str]:
        """Return the tenant's libraries of which anything was taken up, ordered by name."""
        sql = f"SELECT library FROM graph_scopes_{self._number} WHERE tenant=? ORDER BY 1"
        return await self._read(lambda db: [row[0] for row in db.execute(sql, (tenant,))])

    async def answer(self, ask: Ask, tenant: str, library: str | None) -> Any:
        """Return what this shard says in an answer over several; see `GraphRows`."""
        return await self._read(lambda db: GraphRows(db, self._number, tenant, library).answer(ask))

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come."""
        return await self._read(lambda db: _stats(db, self._number))

    async def _cluster(self, tenant: str, library: str) -> None:
        """Bring a library's communities up to date."""
        async with self._turn:
            stale = await self._read(lambda db: communities.stale_scope(db, self._number, tenant, library))
            if stale is not None:
                edges = await self._plan(communities.edges(), tenant, library)
                found = await asyncio.to_thread(communities.grouped, edges, self._clustering)
                await self._write(lambda db: communities.write(db, self._number, *stale, found))

    async def _follow_batch(self, limit: int) -> tuple[int, int]:
        chunks = await self._read(lambda db: taking_up.pending(db, self._number, limit))
        if not chunks:
            return 0, 0
        found = await self._extractor.extract([chunk.text for chunk in chunks])
        num_new = await self._write(lambda db: taking_up.take_up(db, self._number, chunks, found))
        return len(chunks), num_new

    async def _plan(self, plan: Plan[_Answer], tenant: str, library: str | None) -> _Answer:
        return await self._read(
            lambda db: run_here(plan, GraphRows(db, self._number, tenant, library).answer)
        )

    async def _read(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        def run() -> _Answer:
            with self._database.read() as db:
                return work(db)

        return await asyncio.to_thread(run)

    async def _write(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        def run() -> _Answer:
            # What the machine's power takes is taken up again: the chunks are durable.
            with self._database.write(durable=False) as db:
                return work(db)

        return await asyncio.to_thread(run)


def _stats(db: sqlite3.Connection, number: int) -> GraphStats:
    def count(what: str) -> int:
        return db.execute(f"SELECT count(*) FROM {what}").fetchone()[0]

    extractor = db.execute(f"SELECT value FROM graph_state_{number} WHERE key='extractor'").fetchone()[0]
    failed = f"graph_chunks_{number} WHERE failure IS NOT NULL"
    failure = db.execute(f"SELECT failure FROM {failed} LIMIT 1").fetchone()
    return GraphStats(
        source="rules" if extractor.startswith("rules") else "llm",
        extractor=extractor,
        num_chunks=count(f"graph_chunks_{number}"),
        num_pending=count(f"graph_pending_{number}"),
        num_failed=count(failed),
        num_entities=count(f"(SELECT DISTINCT scope_id, key FROM graph_mentions_{number})"),
        num_relations=count(f"graph_relations_{number}"),
        failure=None if failure is None else failure[0],
    )
