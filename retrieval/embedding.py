"""The sentence-transformers embedder. The only file of retrieval that loads torch.

Legend: N texts, D dimensions.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.model_files import model_folder, weights_hash
from retrieval.query_cache import QueryCache
from retrieval.types import EmbedderInfo

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_T = TypeVar("_T")


class SentenceTransformerEmbedder:
    """Embeds with any sentence-transformers model, in one thread of its own.

    Passages are embedded in batches of `embed_batch_size`, each its own job of that thread, so a query
    that arrives while a document is being ingested waits for one batch at most.
    """

    def __init__(self, config: RetrievalConfig | None = None) -> None:
        """Prepare; the model loads with the first call, or with `load`."""
        self._config = config or RetrievalConfig()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")
        self._loaded: tuple[SentenceTransformer, EmbedderInfo] | None = None
        self._cache = QueryCache(self._config.query_cache_entries)

    async def load(self) -> dict[str, float]:
        """Load the model and run it once; return seconds by stage: `import_s`, `model_s`, `warm_s`."""
        return await self._in_thread(self._timed_load)

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return (await self._in_thread(self._load))[1]

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D], L2-normalised; texts seen lately come from the cache."""
        return await self._cache.vectors(texts, lambda missing: self._in_thread(self._encode, missing, True))

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D], L2-normalised."""
        # Sorted by length so that a batch pads little: 38 -> 70 passages/s on mixed lengths.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        size = self._config.embed_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        vectors_ND = np.empty((len(texts), (await self.info()).dim), dtype=np.float32)
        for batch in batches:
            vectors_ND[batch] = await self._in_thread(self._encode, [texts[index] for index in batch], False)
        return vectors_ND

    async def aclose(self) -> None:
        """Stop the thread; work already begun ends first."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _timed_load(self) -> dict[str, float]:
        started = time.perf_counter()
        import sentence_transformers  # noqa: F401 - the import is what is timed

        imported = time.perf_counter()
        self._load()
        loaded = time.perf_counter()
        self._encode(["warm"], True)
        done = time.perf_counter()
        return {"import_s": imported - started, "model_s": loaded - imported, "warm_s": done - loaded}

    def _load(self) -> tuple[SentenceTransformer, EmbedderInfo]:
        """Return the model, loaded the first time; runs in the embedder's thread only."""
        if self._loaded is not None:
            return self._loaded
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(self._config.embed_threads or len(os.sched_getaffinity(0)))
        device = self._config.embed_device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = model_folder(self._config.embedder)
        model = SentenceTransformer(str(folder), device=device).eval()
        dim = model.get_embedding_dimension()
        if dim is None:
            raise ValueError(
                f"embedder {self._config.embedder!r} does not say how many numbers its vectors have; "
                "use a model with a pooling layer"
            )
        info = EmbedderInfo(
            model_id=self._config.embedder,
            model_hash=weights_hash(folder),
            dim=dim,
            max_tokens=int(model.max_seq_length or model.tokenizer.model_max_length),
        )
        self._loaded = model, info
        return self._loaded

    def _encode(self, texts: list[str], is_query: bool) -> np.ndarray:
        model, info = self._load()
        if not texts:
            return np.empty((0, info.dim), dtype=np.float32)
        # encode_query and encode_document add the prompts some models (E5, BGE) were trained with.
        encode = model.encode_query if is_query else model.encode_document
        vectors_ND = encode(
            texts,
            batch_size=self._config.embed_batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors_ND, dtype=np.float32)
