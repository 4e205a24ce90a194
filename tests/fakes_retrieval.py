"""Fakes of retrieval for fast tests; the contract suites run over them and over the real parts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from fakes_embedder import HashEmbedder
from fakes_shard import MemoryShard, paragraphs

from retrieval.config import RetrievalConfig
from retrieval.errors import IngestTimeout, InvalidDocument, UnknownDocument, UnknownVersion
from retrieval.ranking.searcher import Searcher
from retrieval.ranking.view import IndexView
from retrieval.requests import check_document
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentState,
    DocumentText,
    Library,
    Metadata,
    Passage,
    SearchRequest,
    SearchResult,
)

__all__ = ["HashEmbedder", "MemoryRetrieval"]


class MemoryRetrieval:
    """A `Retriever` and `DocumentStore` in memory: one chunk a paragraph, ready at once, text only.

    The searcher is the real one, over a shard in memory.
    """

    def __init__(self, config: RetrievalConfig | None = None) -> None:
        self._config = config or RetrievalConfig()
        self._documents: dict[str, tuple[str, Document, bytes]] = {}
        self._shard = MemoryShard()
        self._searcher = Searcher(self._view_of, self._config)

    async def add(
        self,
        name: str,
        data: bytes,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> Document:
        check_document(name, data, library, tenant, self._config)
        content_hash = hashlib.sha256(data).hexdigest()
        document_id = hashlib.sha256("\0".join((tenant, library, name)).encode()).hexdigest()[:20]
        known = self._documents.get(document_id)
        if known is not None and known[1].content_hash == content_hash:
            return known[1]
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise InvalidDocument(f"'{name}': the in-memory store reads UTF-8 text only") from error
        now = time.time()
        document = Document(
            document_id=document_id,
            library=library,
            name=name,
            media_type="text/plain",
            content_hash=content_hash,
            num_bytes=len(data),
            state=DocumentState.READY,
            num_chunks=len(paragraphs(text)),
            created_s=known[1].created_s if known else now,
            updated_s=now,
            metadata=metadata or {},
        )
        self._shard.remove_document(document_id)
        await self._shard.put(
            name,
            text,
            library=library,
            tenant=tenant,
            metadata=metadata,
            content=f"{document_id}:{content_hash[:12]}",
        )
        self._documents[document_id] = (tenant, document, data)
        return document

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        found = [
            document
            for owner, document, _ in self._documents.values()
            if owner == tenant and library in (None, document.library)
        ]
        return sorted(found, key=lambda document: (document.name, document.library))

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        return self._entry(document_id, tenant)[1]

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        return DocumentText(self._entry(document_id, tenant)[2].decode())

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        return self._entry(document_id, tenant)[2]

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        self._entry(document_id, tenant)
        del self._documents[document_id]
        self._shard.remove_document(document_id)

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        documents = await self.documents(tenant=tenant)
        return [
            Library(name, len(owned), len(owned), sum(document.num_chunks for document in owned))
            for name in sorted({document.library for document in documents})
            if (owned := [document for document in documents if document.library == name])
        ]

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        if timeout_s < 0:
            raise IngestTimeout(f"no patience: timeout_s={timeout_s}")
        return [await self.document(document_id, tenant=tenant) for document_id in document_ids]

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        return await self._searcher.search(requests)

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        return await self._searcher.passages(chunk_ids, tenant=tenant)

    def _view_of(self, version: str | None) -> IndexView:
        spec = self._shard.spec
        if version not in (None, spec.version_id):
            raise UnknownVersion(f"no index version or alias {version!r}; there is {spec.version_id!r}")
        return IndexView(spec.version_id, 1, spec, self._shard.embedder, (self._shard,))

    def _entry(self, document_id: str, tenant: str) -> tuple[str, Document, bytes]:
        entry = self._documents.get(document_id)
        if entry is None or entry[0] != tenant:
            raise UnknownDocument(f"no document '{document_id}'; list the documents to see what there is")
        return entry
