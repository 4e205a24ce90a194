"""The HTTP routes of records and of index operations, under /v1."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from graft.sdk import AsyncGraft
from graft.wire import OURS, error_to_json, to_json
from retrieval.admin import VersionChange
from retrieval.errors import UnknownVersion
from retrieval.types import DEFAULT_LIBRARY, Record
from retrieval.versions import VersionInfo

MAX_RECORDS = 10_000
"""Most records of one call."""
MAX_QUERIES = 10_000
"""Most queries of one recall estimate."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecordsBody(_Body):
    """Records to store."""

    library: str = DEFAULT_LIBRARY
    records: list[Record] = Field(max_length=MAX_RECORDS)


class SwitchBody(_Body):
    """The version that is to answer."""

    version: str


class VersionBody(_Body):
    """A version, or None: the active one, or for an alias none at all."""

    version: str | None = None


class CollectBody(_Body):
    """How many retired versions stay; None for as many as are configured."""

    keep: int | None = Field(default=None, ge=0)


class RecallBody(_Body):
    """What a recall estimate rests on."""

    num_queries: int = Field(default=200, ge=1, le=MAX_QUERIES)
    version: str | None = None


class ReshardBody(_Body):
    """How many shards there are to be."""

    num_shards: int


class PromoteBody(_Body):
    """The copy of a shard that is to take its writes; None for the one that is furthest."""

    shard: int
    slot: int | None = None


class SnapshotBody(_Body):
    """Where a snapshot goes."""

    folder: Path


def index_router(graft: AsyncGraft) -> APIRouter:
    """Return the routes of records and of index operations."""
    router = APIRouter(prefix="/v1")

    @router.post("/records")
    async def upsert(body: RecordsBody) -> Any:
        return to_json(await graft.upsert(body.records, library=body.library))

    @router.get("/index/versions")
    async def versions() -> Any:
        return {"versions": [to_json(item) for item in await graft.index.versions()]}

    @router.post("/index/versions", status_code=202)
    async def make_version(body: VersionChange) -> Any:
        return to_json(
            await graft.index.reindex(
                embedder=body.embedder,
                chunk_tokens=body.chunk_tokens,
                chunk_overlap_tokens=body.chunk_overlap_tokens,
                dim=body.dim,
                vectors=body.vectors,
                tokens=body.tokens,
                kind=body.kind,
                timeout_s=None,
            )
        )

    @router.get("/index/versions/{version}")
    async def version(version: str) -> Any:
        return to_json(_named(await graft.index.versions(), version))

    @router.delete("/index/versions/{version}", status_code=204)
    async def drop_version(version: str) -> None:
        await graft.index.drop_version(version)

    @router.post("/index/collect")
    async def collect(body: CollectBody) -> Any:
        return {"removed": await graft.index.collect(body.keep)}

    @router.put("/index/aliases/{alias}", status_code=204)
    async def set_alias(alias: str, body: VersionBody) -> None:
        await graft.index.set_alias(alias, body.version)

    @router.post("/index/switch")
    async def switch(body: SwitchBody) -> Any:
        return to_json(await graft.index.switch(body.version))

    @router.post("/index/rollback")
    async def rollback() -> Any:
        return to_json(await graft.index.rollback())

    @router.get("/index/segments")
    async def segments() -> Any:
        return {"segments": [to_json(item) for item in await graft.index.segments()]}

    @router.post("/index/compact")
    async def compact(body: VersionBody) -> Any:
        return {"segments": [to_json(item) for item in await graft.index.compact(body.version)]}

    @router.post("/index/recall")
    async def recall(body: RecallBody) -> Any:
        return to_json(await graft.index.estimate_recall(body.num_queries, version=body.version))

    @router.get("/index/shards")
    async def shards() -> Any:
        return {"shards": [to_json(item) for item in await graft.index.shards()]}

    @router.post("/index/reshard")
    async def reshard(body: ReshardBody) -> Any:
        return to_json(await graft.index.reshard(body.num_shards))

    @router.post("/index/promote")
    async def promote(body: PromoteBody) -> Any:
        return to_json(await graft.index.promote(body.shard, body.slot))

    @router.post("/index/snapshot")
    async def snapshot(body: SnapshotBody) -> Any:
        return to_json(await graft.index.snapshot(body.folder))

    @router.get("/index/progress")
    async def progress(library: str | None = None) -> Any:
        return to_json(await graft.index.progress(library))

    @router.get("/index/export")
    async def export(library: str | None = None, batch: int = 256) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            try:
                async with aclosing(graft.index.export(library=library, batch=batch)) as batches:  # pyright: ignore[reportArgumentType]
                    async for records in batches:
                        yield json.dumps([to_json(record) for record in records]) + "\n"
            except OURS as error:  # The headers are gone; the last line says why the stream ends.
                yield json.dumps(error_to_json(error)) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return router


def _named(versions: list[VersionInfo], name: str) -> VersionInfo:
    for item in versions:
        if name in (item.version_id, *item.aliases):
            return item
    known = ", ".join(item.version_id for item in versions)
    raise UnknownVersion(f"no index version '{name}'; there are: {known}")
