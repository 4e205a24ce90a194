"""The HTTP routes of ingestion: files read in place, with progress, and waiting for documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from graft.admission import Admission, event_stream, sse
from graft.backend import Ingested
from graft.bulk import OnProgress
from graft.in_place import InPlace, NamedFile
from graft.sdk import AsyncGraft
from graft.wire import metadata_from_json, to_json
from retrieval.ingestion.bulk import BulkProgress
from retrieval.types import DEFAULT_LIBRARY

MAX_WAITED_FOR = 1_000
"""Most documents waited for in one call."""
MAX_WAIT_S = 10.0
"""Longest such a wait; the client asks again."""
TELL_S = 0.25
"""Progress is told at most this often."""
BEAT_S = 10.0
"""A comment is sent after so long without news, so that a client that is gone is noticed."""
_SLICE = 500
"""Documents of one event."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IngestBody(_Body):
    """Files to read in place."""

    files: list[NamedFile]
    library: str = DEFAULT_LIBRARY
    metadata: dict[str, Any] | None = None


class WaitBody(_Body):
    """Documents to wait for."""

    document_ids: list[str] = Field(max_length=MAX_WAITED_FOR)
    timeout_s: float = Field(ge=0.0, le=MAX_WAIT_S)


def ingest_router(graft: AsyncGraft, admission: Admission, in_place: InPlace) -> APIRouter:
    """Return the routes of ingestion."""
    router = APIRouter(prefix="/v1")

    @router.post("/ingest")
    async def ingest(request: Request, body: IngestBody) -> StreamingResponse:
        in_place.check_caller(request.scope.get("client"), request.scope.get("server"))
        files = await asyncio.to_thread(in_place.files, body.files)
        metadata = None if body.metadata is None else metadata_from_json(body.metadata)

        def ingesting(on_progress: OnProgress) -> Coroutine[Any, Any, Ingested]:
            return graft.ingest_files(files, library=body.library, metadata=metadata, on_progress=on_progress)

        return event_stream(_events(ingesting), admission)

    @router.post("/documents/ready")
    async def ready(body: WaitBody) -> Any:
        documents = await graft.wait_ready(body.document_ids, timeout_s=body.timeout_s)
        return {"documents": [to_json(document) for document in documents]}

    return router


async def _events(ingesting: Callable[[OnProgress], Coroutine[Any, Any, Ingested]]) -> AsyncIterator[str]:
    """Yield progress while files are ingested, then their documents; closing it ends the work."""
    news = _News()
    working = asyncio.create_task(ingesting(news.put), name="ingest-in-place")
    loop = asyncio.get_running_loop()
    told_s = loop.time()
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=TELL_S)
            if (progress := news.take()) is not None:
                told_s = loop.time()
                yield sse({"type": "progress", "progress": to_json(progress)})
            elif loop.time() - told_s > BEAT_S:
                told_s = loop.time()
                yield ": at work\n\n"
        found = working.result()
    finally:
        working.cancel()
        # Its stages are to be stopped before this is said to have ended, also when the client has left.
        with anyio.CancelScope(shield=True):
            await asyncio.wait({working})
    for start in range(0, len(found.documents), _SLICE):
        documents = [to_json(document) for document in found.documents[start : start + _SLICE]]
        yield sse({"type": "documents", "documents": documents})
    yield sse({"type": "ingested", "refused": [to_json(refused) for refused in found.refused]})


class _News:
    """The latest progress not told yet, with every failure since the one before."""

    def __init__(self) -> None:
        self._latest: BulkProgress | None = None

    def put(self, progress: BulkProgress) -> None:
        """Note how far the work is."""
        if self._latest is not None:
            progress = replace(progress, failures=(*self._latest.failures, *progress.failures))
        self._latest = progress

    def take(self) -> BulkProgress | None:
        """Return what is to be told; None for nothing new."""
        latest, self._latest = self._latest, None
        return latest
