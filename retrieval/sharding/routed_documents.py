"""A `DocumentStore` over shards: each call goes to the shard of its document, lists are merged.

A list is whole or an error: a shard that does not answer must not look like documents that are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, IngestTimeout, ShardMoved
from retrieval.requests import check_document
from retrieval.sharding.topology import CurrentTopology, Topology, all_of, gathered
from retrieval.truth.documents import document_id_of
from retrieval.truth.metadata import canonical
from retrieval.truth.records import check as check_records
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Acknowledged,
    Document,
    DocumentText,
    Library,
    Metadata,
    Record,
)

_WAIT_MARGIN_S = 5.0
"""How much longer than the caller's patience the router waits for a shard to say so itself."""
_WAIT_SLICE_S = 30.0
"""Longest wait asked of a shard at once: after a reshard the documents are waited for elsewhere."""


class RoutedDocuments:
    """The documents of all shards; belongs to one event loop."""

    def __init__(self, topology: CurrentTopology, config: RetrievalConfig) -> None:
        """Use these shards."""
        self._topology = topology
        self._config = config

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
        check_document(name, data, library, tenant, self._config)  # Before 200 MB cross to the shard.
        document_id = document_id_of(tenant, library, name)
        return await self._topology.using(
            lambda now: now.shard_of(document_id).write(
                "add", name, data, library=library, tenant=tenant, metadata=metadata
            )
        )

    async def upsert(
        self, records: Sequence[Record], *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Acknowledged:
        """Store records in one transaction a shard; see `DocumentStore.upsert`."""
        # Before any shard stores its part: one that refuses its own cannot take back the others'.
        check_records(records)
        for record in records:
            canonical(record.metadata)
        document_ids = [document_id_of(tenant, library, record.name) for record in records]

        async def write(now: Topology) -> Acknowledged:
            groups = now.by_shard(document_ids)
            written = await gathered(
                now.shards[shard].write(
                    "upsert", [records[i] for i in positions], library=library, tenant=tenant
                )
                for shard, positions in groups.items()
            )
            seqs = {name: seq for acknowledged in written for name, seq in acknowledged.seqs.items()}
            return Acknowledged(seqs, len(records))

        return await self._topology.using(write)

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        lists = await self._every("documents", library=library, tenant=tenant)
        return sorted(
            (document for found in lists for document in found), key=lambda one: (one.name, one.library)
        )

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document; raises UnknownDocument."""
        return await self._one("document", document_id, tenant=tenant)

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text of a document that is or was ready; raises UnknownDocument."""
        return await self._one("text", document_id, tenant=tenant)

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes of what answers; raises UnknownDocument."""
        return await self._one("content", document_id, tenant=tenant)

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store; when this returns, no query finds it."""
        await self._topology.using(lambda now: now.shard_of(document_id).delete(document_id, tenant))

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        merged: dict[str, Library] = {}
        for found in await self._every("libraries", tenant=tenant):
            for library in found:
                known = merged.get(library.name, Library(library.name, 0, 0, 0))
                merged[library.name] = replace(
                    known,
                    num_documents=known.num_documents + library.num_documents,
                    num_ready=known.num_ready + library.num_ready,
                    num_chunks=known.num_chunks + library.num_chunks,
                )
        return [merged[name] for name in sorted(merged)]

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is `ready` or `failed`; see `DocumentStore.wait_ready`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s

        async def wait(now: Topology) -> list[Document]:
            left_s = max(end - loop.time(), 0.0)
            groups = now.by_shard(document_ids)
            found: list[Document | None] = [None] * len(document_ids)
            lists = await gathered(
                self._wait(now, shard, [document_ids[i] for i in positions], left_s, tenant)
                for shard, positions in groups.items()
            )
            for positions, documents in zip(groups.values(), lists, strict=True):
                for position, document in zip(positions, documents, strict=True):
                    found[position] = document
            return [document for document in found if document is not None]

        return await self._topology.using(wait)

    async def _wait(
        self, now: Topology, shard: int, document_ids: list[str], timeout_s: float, tenant: str
    ) -> list[Document]:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            left_s = max(end - loop.time(), 0.0)
            slice_s = min(left_s, _WAIT_SLICE_S)
            try:
                return await now.shards[shard].write(
                    "wait_ready",
                    document_ids,
                    timeout_s=slice_s,
                    tenant=tenant,
                    patience_s=slice_s + _WAIT_MARGIN_S,
                )
            except IngestTimeout:
                if self._topology.now is not now:
                    raise ShardMoved("the documents have moved to other shards") from None
                if slice_s >= left_s:
                    raise
            except IndexUnavailable as error:
                if isinstance(error, ShardMoved) or not isinstance(error.__cause__, TimeoutError):
                    raise
                if slice_s >= left_s:
                    raise IngestTimeout(
                        f"{len(document_ids)} documents still under way after {timeout_s:g} s, and "
                        f"{now.shards[shard].name} does not answer; wait longer or look at its log"
                    ) from error

    async def _one(self, method: str, document_id: str, *, tenant: str) -> Any:
        return await self._topology.using(
            lambda now: now.shard_of(document_id).write(method, document_id, tenant=tenant)
        )

    async def _every(self, method: str, **kwargs: Any) -> list[Any]:
        return await self._topology.using(lambda now: all_of(now.shards, method, **kwargs))
