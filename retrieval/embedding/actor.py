"""The embedder as Ray actors: replicas of one model, and the client that spreads work over them.

Ray restarts a replica that died. Meanwhile its calls wait or go to another; one that is gone for good is left
out, and only when all are gone is that `IndexUnavailable`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from retrieval.actor_calls import answer, answer_once, named_actor, patiently
from retrieval.config import RetrievalConfig
from retrieval.embedding.embedder import SentenceTransformerEmbedder
from retrieval.errors import IndexUnavailable, ShardRestarting
from retrieval.query_cache import QueryCache
from retrieval.types import EmbedderInfo, EncodedTokens
from retrieval.versions import TokenCodec

EMBEDDER_NAME = "retrieval-embedder"
_MIN_SHARE_TEXTS = 32
"""Passages worth a call of their own: fewer go to one replica."""
_AVOID_S = 1.0
"""How long a replica that is restarting is asked only if no other is there."""


def embedder_name(replica: int) -> str:
    """Return the name a replica has in its Ray namespace."""
    return EMBEDDER_NAME if replica == 0 else f"{EMBEDDER_NAME}-{replica}"


class EmbedderActor:
    """One replica; loads its model as soon as it starts."""

    def __init__(self, config: RetrievalConfig) -> None:
        self._embedder = SentenceTransformerEmbedder(config)
        self._loading = asyncio.ensure_future(self._embedder.load())

    async def ready(self) -> dict[str, float]:
        """Return seconds by stage of loading."""
        return await asyncio.shield(self._loading)

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return await self._embedder.info()

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim]."""
        return await self._embedder.embed_queries(texts)

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return float32[len(texts), dim] and each query's float32[num_tokens, dim]."""
        return await self._embedder.embed_queries_with_tokens(texts)

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim]."""
        return await self._embedder.embed_passages(texts)

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Return float32[len(texts), dim] and the codes of each text's tokens."""
        return await self._embedder.embed_passages_with_tokens(texts, codec)

    async def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()


def start_embedders(config: RetrievalConfig, options: Mapping[str, Any]) -> list[Any]:
    """Start `config.num_embedders` replicas under their names and return their handles at once.

    Args:
        config: Their settings.
        options: Ray actor options of each, but for the name.
    """
    kind = ray.remote(EmbedderActor)
    return [
        kind.options(**{**options, "name": embedder_name(replica)}).remote(config)
        for replica in range(config.num_embedders)
    ]


class ActorEmbedder:
    """An `Embedder` over the replicas of an embedder actor; each call goes to the one with least to do."""

    def __init__(self, replicas: Any, config: RetrievalConfig) -> None:
        """Use running actors: one handle, or a sequence of them."""
        handles = list(replicas) if isinstance(replicas, list | tuple) else [replicas]
        self._replicas = handles
        self._texts_under_way = [0] * len(handles)
        self._gone: set[int] = set()
        self._avoided_until_s = [0.0] * len(handles)
        self._timeout_s = config.call_timeout_s
        self._queries = QueryCache(config.query_cache_entries)

    @classmethod
    def attach(cls, config: RetrievalConfig, *, namespace: str) -> ActorEmbedder:
        """Use the `config.num_embedders` replicas running in `namespace`.

        Raises:
            IndexUnavailable: One of them is not running.
        """
        names = [embedder_name(replica) for replica in range(config.num_embedders)]
        return cls([named_actor(name, namespace) for name in names], config)

    async def ready(self) -> dict[str, float]:
        """Wait until every replica has loaded; return the seconds by stage of the slowest."""
        calls = [answer("the embedder", self._timeout_s, handle.ready.remote) for handle in self._replicas]
        return max(await asyncio.gather(*calls), key=lambda stages: sum(stages.values()))

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return await self._call("info", 0)

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised."""
        return await self._queries.vectors(
            texts, lambda missing: self._call("embed_queries", len(missing), missing)
        )

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return float32[len(texts), dim] and each query's float32[num_tokens, dim] unit vectors."""
        return await self._queries.vectors_with_tokens(
            texts, lambda missing: self._call("embed_queries_with_tokens", len(missing), missing)
        )

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised; the texts are shared out over the replicas."""
        shares = self._shares(texts)
        parts = await asyncio.gather(
            *(self._call("embed_passages", len(share), share) for share in _texts_of(shares, texts))
        )
        return _joined(shares, parts, len(texts))

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Return float32[len(texts), dim], and the token vectors compressed; shared out over the replicas."""
        shares = self._shares(texts)
        parts: list[tuple[np.ndarray, EncodedTokens]] = await asyncio.gather(
            *(
                self._call("embed_passages_with_tokens", len(share), share, codec)
                for share in _texts_of(shares, texts)
            )
        )
        codes = {
            index: code
            for share, (_, tokens) in zip(shares, parts, strict=True)
            for index, code in zip(share, tokens.codes, strict=True)
        }
        vectors_ND = _joined(shares, [part_ND for part_ND, _ in parts], len(texts))
        return vectors_ND, EncodedTokens(tuple(codes[index] for index in range(len(texts))), codec)

    def _shares(self, texts: Sequence[str]) -> list[range]:
        """Return the indices of texts in interleaved shares, at most one a replica that is there."""
        num_there = max(1, len(self._replicas) - len(self._gone))
        num_shares = max(1, min(num_there, len(texts) // _MIN_SHARE_TEXTS))
        return [range(start, len(texts), num_shares) for start in range(num_shares)]

    async def _call(self, method: str, num_texts: int, *args: Any) -> Any:
        """Return what a replica answers, of those there the one with the fewest texts under way."""

        async def attempt(left_s: float) -> Any:
            number = self._least_loaded()
            handle = self._replicas[number]
            self._texts_under_way[number] += num_texts
            try:
                return await answer_once(
                    "the embedder", left_s, lambda: getattr(handle, method).remote(*args)
                )
            except ShardRestarting:
                self._avoided_until_s[number] = time.monotonic() + _AVOID_S
                raise
            except IndexUnavailable as error:
                if not isinstance(error.__cause__, RayActorError):
                    raise
                self._gone.add(number)
                if len(self._gone) == len(self._replicas):
                    raise
                raise ShardRestarting(f"an embedder is gone, another is asked: {error}") from error
            finally:
                self._texts_under_way[number] -= num_texts

        return await patiently(self._timeout_s, attempt)

    def _least_loaded(self) -> int:
        there = [number for number in range(len(self._replicas)) if number not in self._gone]
        now_s = time.monotonic()
        return min(
            there or range(len(self._replicas)),
            key=lambda number: (self._avoided_until_s[number] > now_s, self._texts_under_way[number]),
        )


def _texts_of(shares: Sequence[range], texts: Sequence[str]) -> list[list[str]]:
    return [[texts[index] for index in share] for share in shares]


def _joined(shares: Sequence[range], parts: Sequence[np.ndarray], num_texts: int) -> np.ndarray:
    if len(shares) == 1:
        return parts[0]
    vectors_ND = np.empty((num_texts, parts[0].shape[1]), dtype=np.float32)
    for share, part_ND in zip(shares, parts, strict=True):
        vectors_ND[share.start :: share.step] = part_ND
    return vectors_ND
