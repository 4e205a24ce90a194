"""The embedder of sentence-transformers models, whichever backend computes it.

Legend: N texts, D dimensions.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.embedding.backend import Backend
from retrieval.embedding.batches import cut_batches
from retrieval.embedding.choice import converted_folder, open_backend
from retrieval.embedding.passage_cache import CachedPassage, PassageCache
from retrieval.embedding.work_queue import Priority, WorkQueue
from retrieval.query_cache import QueryCache
from retrieval.ranking import token_codes
from retrieval.types import EmbedderInfo, EncodedTokens
from retrieval.versions import TokenCodec

_WINDOW_TEXTS = 1024
"""Passages sorted by length together: enough to pad little, few enough to hold tokenised."""
_CACHE_FILE = "vectors.sqlite"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Ready:
    """What loading made."""

    backend: Backend
    queue: WorkQueue
    cache: PassageCache | None


class SentenceTransformerEmbedder:
    """Embeds with any sentence-transformers model, in threads of its own.

    Texts are sorted by length and computed in batches of a bounded number of tokens. Each batch is a job by
    itself and a query's goes before a passage's, so a query that arrives while a document is being ingested
    waits for one batch at most.
    """

    def __init__(self, config: RetrievalConfig | None = None) -> None:
        """Prepare; the model loads with the first call, or with `load`."""
        self._config = config or RetrievalConfig()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder-load")
        self._ready: _Ready | None = None
        self._queries = QueryCache(self._config.query_cache_entries)

    async def load(self) -> dict[str, float]:
        """Load the model and run it once; return seconds by stage: `model_s`, `warm_s`."""
        started = time.perf_counter()
        await self._load()
        loaded = time.perf_counter()
        await self._encode(["warm"], Priority.QUERY)
        return {"model_s": loaded - started, "warm_s": time.perf_counter() - loaded}

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return (await self._load()).backend.info

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D], L2-normalised; texts seen lately come from the cache."""

        async def embed(missing: list[str]) -> np.ndarray:
            return (await self._encode(missing, Priority.QUERY))[0]

        return await self._queries.vectors(texts, embed)

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return float32[N, D] and, per query, float32[num_tokens, D] unit vectors of its tokens.

        Raises:
            ValueError: The model has no token vectors.
        """

        async def embed(missing: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
            return await self._encode(missing, Priority.QUERY, finish=lambda tokens_TD: tokens_TD)

        return await self._queries.vectors_with_tokens(texts, embed)

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D], L2-normalised."""
        return (await self._embed_passages(texts, "none"))[0]

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Return float32[N, D], and the token vectors of the same forward pass, compressed.

        Raises:
            ValueError: `codec` is `none`, or the model has no token vectors.
        """
        if codec == "none":
            raise ValueError("token vectors cannot be kept as 'none'; give sign, int4 or int8")
        vectors_ND, codes = await self._embed_passages(texts, codec)
        return vectors_ND, EncodedTokens(tuple(codes), codec)

    async def aclose(self) -> None:
        """Stop the threads; work already begun ends first."""
        await asyncio.to_thread(self._loader.shutdown, wait=True, cancel_futures=True)
        if self._ready is not None:
            await asyncio.to_thread(self._ready.queue.close)
            if self._ready.cache is not None:
                self._ready.cache.close()

    async def _load(self) -> _Ready:
        return self._ready or await asyncio.get_running_loop().run_in_executor(self._loader, self._open)

    def _open(self) -> _Ready:
        """Load what is to be loaded, once; runs in the loader's thread only."""
        if self._ready is None:
            backend = open_backend(self._config)
            cache = None
            if self._config.embed_cache_bytes:
                path = converted_folder(self._config) / _CACHE_FILE
                cache = PassageCache.open(path, self._config.embed_cache_bytes)
            self._ready = _Ready(backend, WorkQueue(backend.num_threads), cache)
        return self._ready

    async def _embed_passages(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, list[bytes]]:
        """Return vectors and, unless `codec` is `none`, codes; from the cache on disk where it has them."""
        ready = await self._load()
        info, cache = ready.backend.info, ready.cache
        finish = None if codec == "none" else lambda tokens_TD: token_codes.encode(tokens_TD, codec)
        vectors_ND = np.empty((len(texts), info.dim), dtype=np.float32)
        codes: list[bytes] = [b""] * len(texts)
        missing = list(range(len(texts)))
        keys: list[bytes] = []
        if cache is not None:
            keys = [PassageCache.key(info.model_hash, codec, text) for text in texts]
            found = await asyncio.to_thread(cache.find, list(dict.fromkeys(keys)))
            for index, key in enumerate(keys):
                if key in found:
                    vectors_ND[index], codes[index] = found[key].vector_D, found[key].codes
            missing = [index for index, key in enumerate(keys) if key not in found]
        for start in range(0, len(missing), _WINDOW_TEXTS):
            window = missing[start : start + _WINDOW_TEXTS]
            wanted = [texts[index] for index in window]
            vectors_ND[window], fresh = await self._encode(wanted, Priority.PASSAGE, finish=finish)
            for index, code in zip(window, fresh, strict=finish is not None):  # Without codes there are none.
                codes[index] = code
            if cache is not None:
                passages = {keys[index]: CachedPassage(vectors_ND[index], codes[index]) for index in window}
                await asyncio.to_thread(cache.keep, passages)
        return vectors_ND, codes

    async def _encode(
        self,
        texts: Sequence[str],
        priority: Priority,
        *,
        finish: Callable[[np.ndarray], _T] | None = None,
    ) -> tuple[np.ndarray, list[_T]]:
        """Return vectors and what `finish`, run in the threads, makes of each text's token vectors."""
        ready = await self._load()
        backend = ready.backend
        vectors_ND = np.empty((len(texts), backend.info.dim), dtype=np.float32)
        if not texts:
            return vectors_ND, []
        tokenise = functools.partial(backend.tokenise, is_query=priority is Priority.QUERY)
        tokenised = await ready.queue.run(priority, tokenise, list(texts))
        batches = cut_batches(
            [text.num_tokens for text in tokenised],
            max_tokens=self._config.embed_batch_tokens or backend.batch_tokens,
            max_texts=self._config.embed_batch_size,
        )

        def compute(batch: list[int]) -> list[_T]:
            encoded = backend.encode([tokenised[index] for index in batch], with_tokens=finish is not None)
            vectors_ND[batch] = encoded.vectors_ND
            return [] if finish is None else [finish(tokens_TD) for tokens_TD in encoded.tokens or []]

        jobs = [asyncio.ensure_future(ready.queue.run(priority, compute, batch)) for batch in batches]
        try:
            parts = await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()  # After a failure, or when the caller has gone, the rest is not wanted.
        if finish is None:
            return vectors_ND, []
        finished = {
            index: made
            for batch, part in zip(batches, parts, strict=True)
            for index, made in zip(batch, part, strict=True)
        }
        return vectors_ND, [finished[index] for index in range(len(texts))]
