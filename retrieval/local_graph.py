"""The graph of one shard in this process: a `GraphAdmin` over whichever version is active."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from retrieval.errors import InvalidVersion
from retrieval.graph.asks import Ask
from retrieval.graph.graph_index import GraphIndex
from retrieval.graph.types import Communities, Entities, GraphStats, Neighbourhood
from retrieval.graph_admin import check_limits, graph_is_off
from retrieval.ingestion.graph_follower import GraphFollower
from retrieval.truth.store import Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import DEFAULT_TENANT


class LocalGraph:
    """Reads what a follower keeps."""

    def __init__(self, store: Store, follower: GraphFollower) -> None:
        """Use the shard's truth and what follows it."""
        self._store = store
        self._follower = follower

    async def entities(
        self,
        name: str = "",
        *,
        library: str | None = None,
        limit: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Entities:
        """Return entities by name; see `GraphReader.entities`."""
        check_limits(name, limit=limit)
        _, index = await self._active()
        return await index.entities(name, tenant=tenant, library=library, limit=limit)

    async def neighbourhood(
        self,
        question: str = "",
        *,
        entities: Sequence[str] = (),
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Neighbourhood:
        """Return what is known around entities; see `GraphReader.neighbourhood`."""
        check_limits(question, max_neighbours=max_neighbours, max_chunks=max_chunks)
        _, index = await self._active()
        return await index.neighbourhood(
            question,
            tenant=tenant,
            entities=entities,
            library=library,
            max_neighbours=max_neighbours,
            max_chunks=max_chunks,
        )

    async def communities(
        self,
        *,
        library: str | None = None,
        level: int = 0,
        limit: int = 100,
        tenant: str = DEFAULT_TENANT,
    ) -> Communities:
        """Return groups of entities; see `GraphReader.communities`."""
        check_limits(level=level, limit=limit)
        _, index = await self._active()
        return await index.communities(tenant=tenant, library=library, level=level, limit=limit)

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come; see `GraphAdmin.stats`."""
        if not self._follower.is_on:
            return GraphStats("none", "", 0, 0, 0, 0, 0)
        _, index = await self._active()
        return await index.stats()

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more; see `GraphAdmin.retry_failed`."""
        _, index = await self._active()
        return await index.retry_failed()

    async def drop(self) -> None:
        """Remove what an earlier configuration kept; see `GraphAdmin.drop`."""
        if self._follower.is_on:
            raise InvalidVersion('a graph is kept; set retrieval.graph = "none" before it is removed')
        await self._follower.drop()

    async def libraries(self, tenant: str) -> tuple[str, list[str]]:
        """Return the version that answers, and the tenant's libraries that this shard knows anything of."""
        version, index = await self._active()
        return version.version_id, await index.libraries(tenant)

    async def answer(self, ask: Ask, tenant: str, library: str | None) -> tuple[str, Any]:
        """Return the version that answers, and this shard's share of an answer over several."""
        version, index = await self._active()
        return version.version_id, await index.answer(ask, tenant, library)

    async def _active(self) -> tuple[StoredVersion, GraphIndex]:
        if not self._follower.is_on:
            raise graph_is_off()
        version = await asyncio.to_thread(self._store.version)
        return version, await self._follower.index(version.number)
