"""The HTTP routes of the graph of entities, under /v1/graph."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from graft.sdk import AsyncGraft
from graft.wire import to_json

MAX_ENTITIES = 1000
"""Most entities that one question may name beside its text."""


class NeighbourhoodBody(BaseModel):
    """What a neighbourhood is of."""

    model_config = ConfigDict(extra="forbid")

    question: str = ""
    entities: list[str] = Field(default_factory=list, max_length=MAX_ENTITIES)
    library: str | None = None
    max_neighbours: int = 20
    max_chunks: int = 20


def graph_router(graft: AsyncGraft) -> APIRouter:
    """Return the routes of the graph."""
    router = APIRouter(prefix="/v1/graph")

    @router.get("/entities")
    async def entities(name: str = "", library: str | None = None, limit: int = 20) -> Any:
        return to_json(await graft.graph.entities(name, library=library, limit=limit))

    @router.post("/neighbourhood")
    async def neighbourhood(body: NeighbourhoodBody) -> Any:
        return to_json(await graft.graph.neighbourhood(**body.model_dump()))

    @router.get("/communities")
    async def communities(library: str | None = None, level: int = 0, limit: int = 100) -> Any:
        return to_json(await graft.graph.communities(library=library, level=level, limit=limit))

    @router.get("/status")
    async def status() -> Any:
        return to_json(await graft.graph.stats())

    @router.post("/retry")
    async def retry() -> Any:
        return {"num_queued": await graft.graph.retry_failed()}

    @router.delete("", status_code=204)
    async def drop() -> None:
        await graft.graph.drop()

    return router
