"""Searches without pause while an index changes, each answer checked to be of one version and whole."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.book_passages import WORDS
from retrieval.config import RetrievalConfig
from retrieval.errors import UnknownVersion
from retrieval.extraction.chunking import Chunker
from retrieval.model_files import model_folder, tokenizer_file
from retrieval.reader import ShardReader
from retrieval.types import (
    DocumentText,
    Embedder,
    EmbedderInfo,
    EncodedTokens,
    Retriever,
    SearchMode,
    SearchRequest,
    SearchResult,
)
from retrieval.vectors.codecs import unit
from retrieval.versions import TokenCodec, VersionSpec

K = 8
_MODES: tuple[SearchMode, ...] = ("hybrid", "dense", "lexical")
_PAUSE_S = 0.002
_SCORE_TOLERANCE = 1e-3


class KnownQueries:
    """A real embedder that has embedded the benchmark's queries before, so that searches time the index."""

    def __init__(
        self, embedder: Embedder, vectors: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray]
    ) -> None:
        self._embedder = embedder
        self.vectors = vectors
        self._tokens = tokens

    @classmethod
    async def of(cls, embedder: Embedder, queries: Sequence[str]) -> KnownQueries:
        """Return an embedder that knows these queries."""
        vectors_QD, tokens = await embedder.embed_queries_with_tokens(queries)
        return cls(
            embedder,
            dict(zip(queries, vectors_QD, strict=True)),
            dict(zip(queries, tokens, strict=True)),
        )

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the known vectors."""
        return np.stack([self.vectors[text] for text in texts])

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the known vectors."""
        return await self.embed_queries(texts), [self._tokens[text] for text in texts]

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Embed."""
        return await self._embedder.embed_passages(texts)

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Embed."""
        return await self._embedder.embed_passages_with_tokens(texts, codec)

    async def info(self) -> EmbedderInfo:
        """Return what the embedder is."""
        return await self._embedder.info()


class LegalChunks:
    """Every chunk that a version may return: the benchmark's texts as each chunking cuts them."""

    def __init__(self, texts: Sequence[str], chunk_tokens: Sequence[int]) -> None:
        """Cut all texts."""
        tokenizer = tokenizer_file(model_folder("packaged"))
        self._legal: dict[int, set[str]] = {}
        for tokens in chunk_tokens:
            chunker = Chunker(tokenizer, RetrievalConfig(chunk_tokens=tokens))
            self._legal[tokens] = {
                chunk.text for text in texts for chunk in chunker.chunks(DocumentText(text))
            }

    def allows(self, spec: VersionSpec, text: str) -> bool:
        """Return whether a version of this spec cuts this chunk; a record is a chunk as it is."""
        return text in self._legal[spec.chunk_tokens] or len(text.split()) == WORDS


class Searches:
    """Several tasks that search for ever, and what they saw."""

    def __init__(
        self,
        retrieval: Retriever,
        readers: Sequence[ShardReader],
        queries: Mapping[str, np.ndarray],
        legal: LegalChunks,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            retrieval: What is searched.
            readers: Its shards, asked for stored vectors.
            queries: Vectors by query text.
            legal: What each chunking may return.
        """
        self._retrieval, self._readers, self._queries, self._legal = retrieval, readers, queries, legal
        self.specs: dict[str, VersionSpec] = {}
        """Specs by version id; versions must be told before they are switched to."""
        self.answers: str | None = None
        """Version that must answer from now on; None while a switch is under way."""
        self.phase = "idle"
        """Under which name latencies are kept."""
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: list[str] = []
        self.mixed: list[str] = []
        self.num_checked_scores = 0
        self.by_version: dict[str, int] = defaultdict(int)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, num_tasks: int) -> None:
        """Begin to search."""
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(num_tasks)]

    async def stop(self) -> None:
        """End the searches under way."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):  # A cancellation is none.
                raise error

    async def _run(self, number: int) -> None:
        texts = list(self._queries)
        turn = number * 7
        while True:
            turn += 1
            request = SearchRequest(
                texts[turn % len(texts)],
                K,
                mode=_MODES[turn % len(_MODES)],
                explain=True,
                exact=turn % 2 == 0,
            )
            before, phase, started = self.answers, self.phase, time.perf_counter()
            try:
                (result,) = await self._retrieval.search([request])
            except Exception as error:
                # The benchmark's boundary: any error a search raises is a failed query.
                self.failed.append(f"{phase}: {type(error).__name__}: {error}")
                await asyncio.sleep(_PAUSE_S)
                continue
            self.seconds[phase].append(time.perf_counter() - started)
            certain = before if before == self.answers else None
            await self._check(request, result, certain, scores=turn % 5 == 0)
            await asyncio.sleep(_PAUSE_S)

    async def _check(
        self, request: SearchRequest, result: SearchResult, certain: str | None, *, scores: bool
    ) -> None:
        version, spec = result.index_version, self.specs[result.index_version]
        self.by_version[version] += 1
        if result.partial or len(result.hits) != K or len(result.passages) != K:
            self.failed.append(f"{self.phase}: {len(result.hits)} of {K} hits, lost {result.missing_shards}")
        if certain is not None and version != certain:
            self.mixed.append(f"{version} answered after the switch to {certain}")
        if result.explanation is None or result.explanation.version != version:
            self.mixed.append(f"{version} answered, the explanation names another version")
        for passage in result.passages:
            if not self._legal.allows(spec, passage.text):
                self.mixed.append(f"{version} returned '{passage.text[:40]}', which it does not cut")
                break
        if scores and request.mode != "lexical":
            await self._check_scores(request, result, spec)

    async def _check_scores(self, request: SearchRequest, result: SearchResult, spec: VersionSpec) -> None:
        """Compare the cosines with the vectors that the version itself stores."""
        shown = {hit.chunk_id: hit.dense_score for hit in result.hits if hit.dense_score is not None}
        stored: dict[str, np.ndarray] = {}
        try:
            for reader in self._readers:
                stored |= await reader.vectors(result.index_version, list(shown))
        except UnknownVersion:
            return  # Dropped since.
        query_D = unit(self._queries[request.query][None, :], spec.model_dim, spec.dim)[0]
        for chunk_id in shown.keys() & stored.keys():
            score = float(stored[chunk_id] @ query_D)
            self.num_checked_scores += 1
            if abs(score - shown[chunk_id]) > _SCORE_TOLERANCE:
                self.mixed.append(f"{result.index_version} scored {shown[chunk_id]:.4f}, stores {score:.4f}")
                return
