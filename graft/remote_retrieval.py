"""Retrieval of a running platform over HTTP: searcher, document store and index operations."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path

from graft.http_client import HttpClient
from graft.wire import from_json, search_to_json, to_json
from retrieval.admin import (
    IngestProgress,
    RecallEstimate,
    SegmentReport,
    ShardCopyReport,
    SnapshotInfo,
    VersionChange,
)
from retrieval.errors import IngestTimeout
from retrieval.sharding.placement import Placement
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Acknowledged,
    Document,
    DocumentText,
    Library,
    Metadata,
    Passage,
    Record,
    SearchRequest,
    SearchResult,
)
from retrieval.versions import VersionInfo, VersionState

POLL_S = 0.2
"""How often a version's progress is asked for."""
_WAITED_FOR = 1_000
"""Documents waited for in one call."""
_WAIT_SLICE_S = 5.0
"""Longest such a call; documents that take longer are asked for again."""


class RemoteRetriever:
    """A `Retriever` over HTTP."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`."""
        body = {"requests": [search_to_json(request) for request in requests]}
        response = await self._http.call("POST", "/v1/search", json=body)
        return [from_json(SearchResult, item) for item in response.json()["results"]]

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return passages in order; None for chunks that are gone."""
        response = await self._http.call("POST", "/v1/passages", json={"chunk_ids": list(chunk_ids)})
        return [item and from_json(Passage, item) for item in response.json()["passages"]]


class RemoteStore:
    """A `DocumentStore` over HTTP."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def add(
        self,
        name: str,
        data: bytes,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> Document:
        """Store a file durably and queue it; see `DocumentStore.add`."""
        params = {"library": library, "name": name}
        if metadata is not None:
            params["metadata"] = json.dumps(dict(metadata))
        response = await self._http.call("POST", "/v1/documents", params=params, content=data)
        return from_json(Document, response.json())

    async def upsert(
        self, records: Sequence[Record], *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Acknowledged:
        """Store records; see `DocumentStore.upsert`."""
        body = {"library": library, "records": [to_json(record) for record in records]}
        return from_json(Acknowledged, (await self._http.call("POST", "/v1/records", json=body)).json())

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        response = await self._http.call("GET", "/v1/documents", params=_only(library=library))
        return [from_json(Document, item) for item in response.json()["documents"]]

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document; raises UnknownDocument."""
        response = await self._http.call("GET", f"/v1/documents/{document_id}")
        return from_json(Document, response.json())

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text; raises UnknownDocument."""
        response = await self._http.call("GET", f"/v1/documents/{document_id}/text")
        return from_json(DocumentText, response.json())

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes; raises UnknownDocument."""
        return (await self._http.call("GET", f"/v1/documents/{document_id}/content")).content

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store."""
        await self._http.call("DELETE", f"/v1/documents/{document_id}")

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the libraries ordered by name."""
        response = await self._http.call("GET", "/v1/libraries")
        return [from_json(Library, item) for item in response.json()["libraries"]]

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is ready or failed; raises IngestTimeout."""
        end_s = time.monotonic() + timeout_s
        documents: list[Document] = []
        while len(documents) < len(document_ids):
            some = list(document_ids[len(documents) : len(documents) + _WAITED_FOR])
            left_s = max(end_s - time.monotonic(), 0.0)
            body = {"document_ids": some, "timeout_s": min(left_s, _WAIT_SLICE_S)}
            try:
                response = await self._http.call("POST", "/v1/documents/ready", json=body)
            except IngestTimeout as error:
                if left_s > _WAIT_SLICE_S:
                    continue
                raise IngestTimeout(f"not all are ready after {timeout_s:g} s: {error}") from error
            documents += [from_json(Document, item) for item in response.json()["documents"]]
        return documents


class RemoteIndex:
    """A `ShardedAdmin` over HTTP."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def versions(self) -> list[VersionInfo]:
        """Return every version that is kept, the active one first."""
        response = await self._http.call("GET", "/v1/index/versions")
        return [from_json(VersionInfo, item) for item in response.json()["versions"]]

    async def make_version(self, change: VersionChange) -> VersionInfo:
        """Begin to build a version; see `IndexAdmin.make_version`."""
        response = await self._http.call("POST", "/v1/index/versions", json=_only(**asdict(change)))
        return from_json(VersionInfo, response.json())

    async def wait_version(self, version: str, *, timeout_s: float) -> VersionInfo:
        """Return the version once it holds every document; raises IngestTimeout."""
        end_s = time.monotonic() + timeout_s
        while True:
            found = from_json(
                VersionInfo, (await self._http.call("GET", f"/v1/index/versions/{version}")).json()
            )
            if found.state is not VersionState.BUILDING:
                return found
            if time.monotonic() > end_s:
                raise IngestTimeout(
                    f"version '{version}' holds {found.num_documents:,} of {found.num_wanted:,} documents "
                    f"after {timeout_s:.0f} s; it goes on in the background"
                )
            await asyncio.sleep(POLL_S)

    async def switch(self, version: str) -> VersionInfo:
        """Make a complete version the one that answers; see `IndexAdmin.switch`."""
        response = await self._http.call("POST", "/v1/index/switch", json={"version": version})
        return from_json(VersionInfo, response.json())

    async def rollback(self) -> VersionInfo:
        """Switch to the version that answered before; see `IndexAdmin.rollback`."""
        return from_json(VersionInfo, (await self._http.call("POST", "/v1/index/rollback")).json())

    async def drop_version(self, version: str) -> None:
        """Remove a version that does not answer."""
        await self._http.call("DELETE", f"/v1/index/versions/{version}")

    async def collect(self, keep: int | None = None) -> list[str]:
        """Remove retired versions that are not kept for a rollback, and return their ids."""
        response = await self._http.call("POST", "/v1/index/collect", json={"keep": keep})
        return response.json()["removed"]

    async def set_alias(self, alias: str, version: str | None) -> None:
        """Let a name point to a version; None removes the name."""
        await self._http.call("PUT", f"/v1/index/aliases/{alias}", json={"version": version})

    async def segments(self) -> list[SegmentReport]:
        """Return what each shard holds in memory of each version."""
        response = await self._http.call("GET", "/v1/index/segments")
        return [from_json(SegmentReport, item) for item in response.json()["segments"]]

    async def compact(self, version: str | None = None) -> list[SegmentReport]:
        """Build new base segments without dead rows."""
        response = await self._http.call("POST", "/v1/index/compact", json={"version": version})
        return [from_json(SegmentReport, item) for item in response.json()["segments"]]

    async def estimate_recall(self, num_queries: int = 200, *, version: str | None = None) -> RecallEstimate:
        """Return how many of the true nearest chunks the index finds."""
        body = {"num_queries": num_queries, "version": version}
        return from_json(
            RecallEstimate, (await self._http.call("POST", "/v1/index/recall", json=body)).json()
        )

    async def copies(self) -> list[ShardCopyReport]:
        """Return every copy of every shard: whether it answers, and how far its log is."""
        response = await self._http.call("GET", "/v1/index/shards")
        return [from_json(ShardCopyReport, item) for item in response.json()["shards"]]

    async def reshard(self, num_shards: int) -> Placement:
        """Spread the documents over another number of shards; see `ShardedAdmin.reshard`."""
        response = await self._http.call("POST", "/v1/index/reshard", json={"num_shards": num_shards})
        return from_json(Placement, response.json())

    async def promote(self, shard: int, slot: int | None = None) -> Placement:
        """Let another copy of a shard take its writes; see `ShardedAdmin.promote`."""
        response = await self._http.call("POST", "/v1/index/promote", json={"shard": shard, "slot": slot})
        return from_json(Placement, response.json())

    async def snapshot(self, folder: Path) -> SnapshotInfo:
        """Copy the whole index into a folder of the platform's machine."""
        response = await self._http.call("POST", "/v1/index/snapshot", json={"folder": str(folder)})
        return from_json(SnapshotInfo, response.json())

    async def progress(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> IngestProgress:
        """Return how far ingestion is."""
        response = await self._http.call("GET", "/v1/index/progress", params=_only(library=library))
        return from_json(IngestProgress, response.json())

    async def export(
        self, *, library: str | None = None, tenant: str = DEFAULT_TENANT, batch: int = 256
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield every searchable chunk as a record with its vector, in batches."""
        async for data in self._http.objects("/v1/index/export", params=_only(library=library, batch=batch)):
            yield [from_json(Record, item) for item in data]


def _only(**values: object) -> dict[str, object]:
    """Return the values that are given."""
    return {name: value for name, value in values.items() if value is not None}
