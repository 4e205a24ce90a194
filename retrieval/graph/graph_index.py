"""The graph of one index version: takes chunks up as they come, and answers from what they say.

Everything lives in the shard's SQLite file (`schema.py`). Chunks are taken up in small transactions, so a
crash loses at most the work on one batch; deletions are in the transaction that deletes the chunk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from retrieval.graph import communities, taking_up
from retrieval.graph.entities import Graph, scopes_of
from retrieval.graph.neighbourhood import neighbourhood
from retrieval.graph.schema import create_graph, drop_graph
from retrieval.graph.types import Community, Extractor, GraphStats, Neighbourhood

_Answer = TypeVar("_Answer")
BATCH_CHUNKS = 64
"""Chunks extracted and written at once."""


class GraphDatabase(Protocol):
    """A shard's file: `retrieval.truth.database.Database`."""

    def read(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return a connection that sees one moment."""
        ...

    def write(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return the writing connection inside a transaction."""
        ...


class GraphIndex:
    """Entities, relations and communities of one version's chunks."""

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

    async def open(self) -> None:
        """Make the tables, every chunk pending, unless this extractor's graph is here already."""
        await self._write(lambda db: create_graph(db, self._number, self._extractor.name))

    async def drop(self) -> None:
        """Remove the graph; the chunks stay."""
        await self._write(lambda db: drop_graph(db, self._number))

    async def rebuild(self) -> None:
        """Forget everything and queue every chunk again."""

        def again(db: sqlite3.Connection) -> None:
            drop_graph(db, self._number)
            create_graph(db, self._number, self._extractor.name)

        await self._write(again)

    async def follow(self, max_chunks: int | None = None) -> int:
        """Take up chunks that wait, and return how many.

        Args:
            max_chunks: Most chunks taken up; None for all that wait.

        Raises:
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

    async def cluster(self) -> int:
        """Bring the communities of changed libraries up to date; return how many had changed."""
        stale = await self._read(lambda db: communities.stale_scopes(db, self._number))
        for scope_id, num_changes in stale:
            edges = await self._read(
                lambda db, scope_id=scope_id: communities.edges_of(Graph(db, self._number, [scope_id]))
            )
            found = await asyncio.to_thread(communities.grouped, edges, self._clustering)
            await self._write(
                lambda db, scope_id=scope_id, num_changes=num_changes, found=found: communities.write(
                    db, self._number, scope_id, num_changes, found
                )
            )
        return len(stale)

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more, and return how many."""
        return await self._write(lambda db: taking_up.retry_failed(db, self._number))

    async def neighbourhood(
        self,
        question: str,
        *,
        tenant: str,
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
    ) -> Neighbourhood:
        """Return what is known around the entities a question names; empty when it names none."""
        return await self._read(
            lambda db: neighbourhood(db, self._number, question, tenant, library, max_neighbours, max_chunks)
        )

    async def communities(self, *, tenant: str, library: str, level: int = 0) -> list[Community]:
        """Return a library's communities as of the last `cluster`, largest first.

        Args:
            tenant: Whose library.
            library: Its name.
            level: 0 for the coarsest; deeper levels also have the communities that were not divided.
        """

        def found(db: sqlite3.Connection) -> list[Community]:
            scopes = scopes_of(db, self._number, tenant, library)
            return [one for scope in scopes for one in communities.read(db, self._number, scope, level)]

        return await self._read(found)

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come."""
        return await self._read(lambda db: _stats(db, self._number))

    async def _follow_batch(self, limit: int) -> tuple[int, int]:
        chunks = await self._read(lambda db: taking_up.pending(db, self._number, limit))
        if not chunks:
            return 0, 0
        found = await self._extractor.extract([chunk.text for chunk in chunks])
        num_new = await self._write(lambda db: taking_up.take_up(db, self._number, chunks, found))
        return len(chunks), num_new

    async def _read(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        def run() -> _Answer:
            with self._database.read() as db:
                return work(db)

        return await asyncio.to_thread(run)

    async def _write(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        def run() -> _Answer:
            with self._database.write() as db:
                return work(db)

        return await asyncio.to_thread(run)


def _stats(db: sqlite3.Connection, number: int) -> GraphStats:
    def count(what: str) -> int:
        return db.execute(f"SELECT count(*) FROM {what}").fetchone()[0]

    extractor = f"SELECT value FROM graph_state_{number} WHERE key='extractor'"
    return GraphStats(
        num_chunks=count(f"graph_chunks_{number}"),
        num_pending=count(f"graph_pending_{number}"),
        num_failed=count(f"graph_chunks_{number} WHERE failure IS NOT NULL"),
        num_entities=count(f"(SELECT DISTINCT scope_id, key FROM graph_mentions_{number})"),
        num_relations=count(f"graph_relations_{number}"),
        num_communities=count(f"graph_communities_{number}"),
        extractor=db.execute(extractor).fetchone()[0],
    )
