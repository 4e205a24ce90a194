"""A retriever over given passages, with the faults tests of agents need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agents.words import words
from retrieval.types import Hit, Passage, SearchRequest, SearchResult


def passage(text: str, *, document: str = "notes.md", ordinal: int = 0, start: int = 0) -> Passage:
    document_id = f"doc-{document}"
    return Passage(
        f"{document_id}:abc:{ordinal}", document_id, document, "default", text, start, start + len(text)
    )


class MemoryRetriever:
    """Ranks by shared words; every passage comes back, as a vector index would do."""

    def __init__(
        self,
        passages: Sequence[Passage],
        *,
        missing_shards: tuple[str, ...] = (),
        delay_s: float = 0.0,
        error: Exception | None = None,
    ) -> None:
        self.stored = {p.chunk_id: p for p in passages}
        self.requests: list[SearchRequest] = []
        self.missing_shards = missing_shards
        self.delay_s = delay_s
        self.error = error

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        self.requests += requests
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        return [self._search(request) for request in requests]

    def _search(self, request: SearchRequest) -> SearchResult:
        asked = {word.stem for word in words(request.query)}
        ranked = sorted(
            (
                (len(asked & {word.stem for word in words(p.text)}) / (len(asked) or 1), p)
                for p in self.stored.values()
                if request.library in (None, p.library)
                and (not request.document_ids or p.document_id in request.document_ids)
            ),
            key=lambda one: (-one[0], one[1].chunk_id),
        )[: request.k]
        return SearchResult(
            hits=tuple(Hit(p.chunk_id, score, rank) for rank, (score, p) in enumerate(ranked)),
            passages=tuple(p for _, p in ranked),
            index_version="memory-1",
            seq=1,
            partial=bool(self.missing_shards),
            missing_shards=self.missing_shards,
        )

    async def passages(self, chunk_ids: Sequence[str], *, tenant: str = "default") -> list[Passage | None]:
        return [self.stored.get(chunk_id) for chunk_id in chunk_ids]
