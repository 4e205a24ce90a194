"""A retriever over a list and a generator that writes what it is told, for tests of agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from agents.words import words
from retrieval.types import Hit, Passage, SearchRequest, SearchResult
from serving.types import GeneratedChunk, GenerateRequest, GeneratorInfo, GeneratorStats, Prompt, TokenUsage


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


class ScriptedGenerator:
    """Streams a script word by word; one token a word."""

    def __init__(
        self,
        script: str | Callable[[GenerateRequest], str],
        *,
        delay_s: float = 0.0,
        max_model_len: int = 100_000,
        error: Exception | None = None,
        ignores_deadline: bool = False,
    ) -> None:
        self.script = script
        self.delay_s = delay_s
        self.max_model_len = max_model_len
        self.error = error
        self.ignores_deadline = ignores_deadline
        self.requests: list[GenerateRequest] = []
        self.num_running = 0
        self.num_finished = 0
        self.num_cancelled = 0

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GeneratedChunk]:
        self.requests.append(request)
        if self.error:
            raise self.error
        text = self.script if isinstance(self.script, str) else self.script(request)
        loop = asyncio.get_running_loop()
        ends = loop.time() + (request.deadline_s if request.deadline_s is not None else 1e9)
        prompt_tokens = await self.count_tokens(request.prompt)
        pieces = text.split(" ")
        self.num_running += 1
        finished = False
        try:
            for i, piece in enumerate(pieces):
                await asyncio.sleep(self.delay_s)
                if i == request.sampling.max_tokens:
                    reason = "length"
                    break
                if loop.time() >= ends and not self.ignores_deadline:
                    reason = "deadline"
                    break
                yield GeneratedChunk(piece if i == 0 else f" {piece}", (i,))
            else:
                i, reason = len(pieces), "stop"
            finished = True
            yield GeneratedChunk("", (), reason, TokenUsage(prompt_tokens, 0, i))
        finally:
            self.num_running -= 1
            self.num_finished += finished
            self.num_cancelled += not finished

    async def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(segment.text.split()) for segment in prompt.segments)

    async def info(self) -> GeneratorInfo:
        return GeneratorInfo("scripted", "0" * 16, "0" * 16, self.max_model_len)

    async def stats(self) -> GeneratorStats:
        return GeneratorStats(self.num_running, 0, self.num_finished, self.num_cancelled, 0, 0, 0)
