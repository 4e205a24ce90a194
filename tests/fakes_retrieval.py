"""Fakes of retrieval for fast tests; the contract suites run over them and over the real parts."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.errors import IngestTimeout, InvalidDocument, UnknownDocument
from retrieval.ranking.token_codes import encode
from retrieval.requests import check_document, check_searches
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentState,
    DocumentText,
    EmbedderInfo,
    EncodedTokens,
    Hit,
    Library,
    Passage,
    SearchRequest,
    SearchResult,
)
from retrieval.versions import TokenCodec

_WORD = re.compile(r"\w+")


class HashEmbedder:
    """A bag of hashed words: texts that share words are near. Counts its calls."""

    def __init__(self, dim: int = 256, max_tokens: int = 256) -> None:
        self.dim = dim
        self.max_tokens = max_tokens
        self.query_calls = 0
        self.passage_calls = 0

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        self.query_calls += 1
        return self._embed(texts)

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.passage_calls += 1
        return self._embed(texts)

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        vectors_ND = await self.embed_passages(texts)
        return vectors_ND, EncodedTokens(tuple(encode(self._tokens(text), codec) for text in texts), codec)

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        return await self.embed_queries(texts), [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> np.ndarray:
        return self._embed(_WORD.findall(text.lower()))

    async def info(self) -> EmbedderInfo:
        return EmbedderInfo("hash", f"hash{self.dim:012d}", self.dim, self.max_tokens)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for vector_D, text in zip(vectors_ND, texts, strict=True):
            vector_D[0] = 1e-3
            for word in _WORD.findall(text.lower()):
                digest = hashlib.sha256(word.encode()).digest()
                vector_D[int.from_bytes(digest[:4], "big") % self.dim] += 1.0
            vector_D /= np.linalg.norm(vector_D)
        return vectors_ND


class MemoryRetrieval:
    """A `Retriever` and `DocumentStore` in a dictionary: one chunk a paragraph, ready at once, text only."""

    def __init__(self, config: RetrievalConfig | None = None) -> None:
        self._config = config or RetrievalConfig()
        self._documents: dict[str, tuple[str, Document, bytes]] = {}
        self._seq = 0

    async def add(
        self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Document:
        check_document(name, data, library, tenant, self._config)
        content_hash = hashlib.sha256(data).hexdigest()
        document_id = hashlib.sha256("\0".join((tenant, library, name)).encode()).hexdigest()[:20]
        known = self._documents.get(document_id)
        if known is not None and known[1].content_hash == content_hash:
            return known[1]
        try:
            num_chunks = len(self._chunks(data.decode()))
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
            num_chunks=num_chunks,
            created_s=known[1].created_s if known else now,
            updated_s=now,
        )
        self._documents[document_id] = (tenant, document, data)
        self._seq += 1
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
        self._seq += 1

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
        check_searches(requests, self._config)
        return [self._search(request) for request in requests]

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        by_id = {passage.chunk_id: passage for passage in self._passages(tenant)}
        return [by_id.get(chunk_id) for chunk_id in chunk_ids]

    def _search(self, request: SearchRequest) -> SearchResult:
        wanted = set(_WORD.findall(request.query.lower()))
        scored = []
        for passage in self._passages(request.tenant):
            if request.library not in (None, passage.library):
                continue
            if request.document_ids and passage.document_id not in request.document_ids:
                continue
            words = _WORD.findall(passage.text.lower())
            score = sum(word in wanted for word in words) / (1 + len(words))
            if score > 0 or request.mode != "lexical":
                scored.append((-score, passage.chunk_id, passage))
        best = sorted(scored, key=lambda item: item[:2])[: request.k]
        dense = request.mode != "lexical"
        lexical = request.mode != "dense"
        hits = tuple(
            Hit(
                chunk_id,
                -negated,
                rank,
                dense_score=-negated if dense else None,
                lexical_score=-negated if lexical and negated else None,
            )
            for rank, (negated, chunk_id, _) in enumerate(best)
        )
        passages = tuple(passage for _, _, passage in best)
        return SearchResult(hits, passages, index_version="memory", seq=self._seq)

    def _passages(self, tenant: str) -> list[Passage]:
        return [
            Passage(
                chunk_id=f"{document.document_id}:{document.content_hash[:12]}:{ordinal}",
                document_id=document.document_id,
                document=document.name,
                library=document.library,
                text=text,
                start=start,
                end=start + len(text),
            )
            for owner, document, data in self._documents.values()
            if owner == tenant
            for ordinal, (start, text) in enumerate(self._chunks(data.decode()))
        ]

    @staticmethod
    def _chunks(text: str) -> list[tuple[int, str]]:
        return [
            (match.start(), match.group())
            for match in re.finditer(r"\S(?:.*?\S)?(?=\s*(?:\n\n|\Z))", text, re.S)
        ]

    def _entry(self, document_id: str, tenant: str) -> tuple[str, Document, bytes]:
        entry = self._documents.get(document_id)
        if entry is None or entry[0] != tenant:
            raise UnknownDocument(f"no document '{document_id}'; list the documents to see what there is")
        return entry
