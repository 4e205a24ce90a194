"""An embedder without a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from retrieval.ranking.token_codes import encode
from retrieval.types import EmbedderInfo, EncodedTokens
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
