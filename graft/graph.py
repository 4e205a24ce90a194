"""The graph of entities as its users see it: `AsyncGraph` is the core; `Graph` is its sync and async twin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from anyio.from_thread import BlockingPortal

from graft.twin import async_twin, sync_twin
from retrieval.errors import IngestTimeout
from retrieval.graph.types import Communities, Entities, GraphStats, Neighbourhood
from retrieval.graph_admin import GraphAdmin

_POLL_S = 0.1


class AsyncGraph:
    """The entities that documents name, how they are connected, and which belong together.

    Kept where `retrieval.graph` is `rules` or `llm`; every method but `stats` and `drop` raises GraphDisabled
    elsewhere.
    """

    def __init__(self, graph: GraphAdmin, tenant: str) -> None:
        self._graph = graph
        self._tenant = tenant

    async def entities(self, name: str = "", *, library: str | None = None, limit: int = 20) -> Entities:
        """Return entities by a name or a part of one; those most mentioned for an empty one.

        Args:
            name: Any form of it; case, hyphens, articles and plurals do not count.
            library: Only this library; None for all.
            limit: Most entities returned, 1 to 1,000.

        Raises:
            InvalidSearch: `limit` is out of its bounds.
        """
        return await self._graph.entities(name, library=library, limit=limit, tenant=self._tenant)

    async def neighbourhood(
        self,
        question: str = "",
        *,
        entities: Sequence[str] = (),
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
    ) -> Neighbourhood:
        """Return what is known around entities and those a question names; empty when none is known.

        Args:
            question: Entities are found in it.
            entities: Names of more, whole.
            library: Only this library; None for all.
            max_neighbours: Most connected entities returned, 1 to 1,000.
            max_chunks: Most chunks returned, 1 to 1,000.

        Raises:
            InvalidSearch: A limit is out of its bounds.
        """
        return await self._graph.neighbourhood(
            question,
            entities=entities,
            library=library,
            max_neighbours=max_neighbours,
            max_chunks=max_chunks,
            tenant=self._tenant,
        )

    async def communities(
        self, *, library: str | None = None, level: int = 0, limit: int = 100
    ) -> Communities:
        """Return groups of entities that belong together, those that most chunks speak of first.

        Args:
            library: Only this library; None for all, each by itself.
            level: 0 for the coarsest; deeper levels also have the communities that were not divided.
            limit: Most communities returned, 1 to 1,000.

        Raises:
            InvalidSearch: `level` or `limit` is out of its bounds.
        """
        return await self._graph.communities(library=library, level=level, limit=limit, tenant=self._tenant)

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come; also where none is kept."""
        return await self._graph.stats()

    async def wait_taken_up(self, *, timeout_s: float = 600.0) -> GraphStats:
        """Return once no chunk waits to be taken up.

        Raises:
            IngestTimeout: Some still wait; they go on in the background.
        """
        end_s = time.monotonic() + timeout_s
        while (stats := await self._graph.stats()).num_pending:
            if time.monotonic() > end_s:
                raise IngestTimeout(
                    f"{stats.num_pending:,} chunks still wait for the graph after {timeout_s:g} s; "
                    "they go on in the background: wait longer or ask again"
                )
            await asyncio.sleep(_POLL_S)
        return stats

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more, and return how many."""
        return await self._graph.retry_failed()

    async def drop(self) -> None:
        """Remove what an earlier configuration kept.

        Raises:
            InvalidVersion: A graph is kept now.
        """
        await self._graph.drop()


class Graph:
    """The graph of a platform, from any thread or loop; methods with `a` are for `await`."""

    def __init__(self, core: AsyncGraph, portal: BlockingPortal) -> None:
        self._core = core
        self._portal = portal

    entities = sync_twin(AsyncGraph.entities)
    aentities = async_twin(AsyncGraph.entities)
    neighbourhood = sync_twin(AsyncGraph.neighbourhood)
    aneighbourhood = async_twin(AsyncGraph.neighbourhood)
    communities = sync_twin(AsyncGraph.communities)
    acommunities = async_twin(AsyncGraph.communities)
    stats = sync_twin(AsyncGraph.stats)
    astats = async_twin(AsyncGraph.stats)
    wait_taken_up = sync_twin(AsyncGraph.wait_taken_up)
    await_taken_up = async_twin(AsyncGraph.wait_taken_up)
    retry_failed = sync_twin(AsyncGraph.retry_failed)
    aretry_failed = async_twin(AsyncGraph.retry_failed)
    drop = sync_twin(AsyncGraph.drop)
    adrop = async_twin(AsyncGraph.drop)
