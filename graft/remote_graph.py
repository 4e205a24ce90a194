"""The graph of entities of a running platform over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from graft.http_client import HttpClient
from graft.wire import from_json
from retrieval.graph.types import Communities, Entities, GraphStats, Neighbourhood
from retrieval.types import DEFAULT_TENANT


class RemoteGraph:
    """A `GraphAdmin` over HTTP; the caller's token decides the tenant."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def entities(
        self,
        name: str = "",
        *,
        library: str | None = None,
        limit: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Entities:
        """Return entities by name; see `GraphReader.entities`."""
        params = {"name": name, "limit": limit} | ({} if library is None else {"library": library})
        return from_json(Entities, (await self._http.call("GET", "/v1/graph/entities", params=params)).json())

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
        body = {
            "question": question,
            "entities": list(entities),
            "library": library,
            "max_neighbours": max_neighbours,
            "max_chunks": max_chunks,
        }
        response = await self._http.call("POST", "/v1/graph/neighbourhood", json=body)
        return from_json(Neighbourhood, response.json())

    async def communities(
        self,
        *,
        library: str | None = None,
        level: int = 0,
        limit: int = 100,
        tenant: str = DEFAULT_TENANT,
    ) -> Communities:
        """Return groups of entities; see `GraphReader.communities`."""
        params = {"level": level, "limit": limit} | ({} if library is None else {"library": library})
        response = await self._http.call("GET", "/v1/graph/communities", params=params)
        return from_json(Communities, response.json())

    async def stats(self) -> GraphStats:
        """Return how large the graph is and how far it has come."""
        return from_json(GraphStats, (await self._http.call("GET", "/v1/graph/status")).json())

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more, and return how many."""
        return (await self._http.call("POST", "/v1/graph/retry")).json()["num_queued"]

    async def drop(self) -> None:
        """Remove what an earlier configuration kept; see `GraphAdmin.drop`."""
        await self._http.call("DELETE", "/v1/graph")
