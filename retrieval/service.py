"""Retrieval in one process: embedder, shard and ingestion composed; a `Retriever` and a `DocumentStore`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from retrieval.config import RetrievalConfig
from retrieval.errors import IngestTimeout
from retrieval.ingest import Ingestor
from retrieval.model_files import model_folder, tokenizer_file
from retrieval.reading import ReadingProcess
from retrieval.requests import check_searches
from retrieval.shard import IndexShard, index_version_of
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentState,
    DocumentText,
    Embedder,
    Library,
    Passage,
    SearchRequest,
    SearchResult,
)

_POLL_S = 0.02
_SETTLED = (DocumentState.READY, DocumentState.FAILED)
_SPECIAL_TOKENS = 2


class LocalRetrieval:
    """Everything of retrieval in this process; open it with `LocalRetrieval.open` and `async with`."""

    def __init__(
        self, shard: IndexShard, embedder: Embedder, ingestor: Ingestor, timings: dict[str, float]
    ) -> None:
        """Compose; `open` is the usual way."""
        self._shard = shard
        self._embedder = embedder
        self._ingestor = ingestor
        self._timings = timings

    @classmethod
    async def open(cls, folder: Path, config: RetrievalConfig, embedder: Embedder) -> LocalRetrieval:
        """Open the shard in `folder` and begin to ingest what is queued there.

        Raises:
            IndexUnavailable: The shard cannot be opened.
            StorageFull: The disk has no room for it.
            ValueError: Chunks of `config.chunk_tokens` would be cut by the embedder.
        """
        started = time.perf_counter()
        reading = ReadingProcess(config, tokenizer_file(model_folder(config.embedder)))
        info = await embedder.info()
        if config.chunk_tokens + _SPECIAL_TOKENS > info.max_tokens:
            raise ValueError(
                f"chunk_tokens={config.chunk_tokens} and {_SPECIAL_TOKENS} special tokens do not fit the "
                f"{info.max_tokens} tokens that {info.model_id!r} reads; lower chunk_tokens"
            )
        embedder_ready = time.perf_counter()
        shard = await asyncio.to_thread(IndexShard, folder, config, index_version_of(info, config))
        await asyncio.to_thread(reading.start)
        timings = {"embedder_s": embedder_ready - started, "open_s": time.perf_counter() - embedder_ready}
        ingestor = Ingestor(shard.store, embedder, reading)
        ingestor.start()
        return cls(shard, embedder, ingestor, timings)

    async def __aenter__(self) -> LocalRetrieval:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop ingesting and close the shard; the embedder is its maker's to close."""
        await self._ingestor.aclose()
        await asyncio.to_thread(self._shard.close)

    async def ready(self) -> dict[str, float]:
        """Return seconds by stage of opening."""
        return self._timings

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`."""
        if not requests:
            return []
        check_searches(requests, self._shard.config)
        started = time.perf_counter()
        vectors_QD = await self._embedder.embed_queries([request.query for request in requests])
        embed_ms = (time.perf_counter() - started) * 1000
        return await asyncio.to_thread(self._shard.search, requests, vectors_QD, embed_ms=embed_ms)

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; None where deleted or not the tenant's."""
        return await asyncio.to_thread(self._shard.store.passages, chunk_ids, tenant)

    async def add(
        self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Document:
        """Store a file durably and queue it; see `DocumentStore.add`."""
        document = await asyncio.to_thread(self._shard.add, name, data, library, tenant)
        self._ingestor.notify()
        return document

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        return await asyncio.to_thread(self._shard.store.documents, library, tenant)

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document; raises UnknownDocument."""
        return await asyncio.to_thread(self._shard.store.document, document_id, tenant)

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text of a document that is or was ready; raises UnknownDocument."""
        return await asyncio.to_thread(self._shard.store.text, document_id, tenant)

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes of the version that answers; raises UnknownDocument."""
        return await asyncio.to_thread(self._shard.store.content, document_id, tenant)

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store; when this returns, no query finds it."""
        await asyncio.to_thread(self._shard.store.delete, document_id, tenant)

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        return await asyncio.to_thread(self._shard.store.libraries, tenant)

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is `ready` or `failed`; see `DocumentStore.wait_ready`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = await asyncio.to_thread(self._shard.store.documents_by_id, document_ids, tenant)
            waiting = [document for document in found if document.state not in _SETTLED]
            if not waiting:
                return found
            if time.monotonic() >= deadline:
                names = ", ".join(f"'{document.name}' ({document.state})" for document in waiting[:10])
                raise IngestTimeout(
                    f"{len(waiting)} documents still under way after {timeout_s:g} s: {names}; "
                    "they go on in the background: wait longer or ask again"
                )
            await asyncio.sleep(_POLL_S)
