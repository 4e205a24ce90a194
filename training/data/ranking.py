"""Seams to what ranks passages: vectors against an index under training, words against a live retriever.

Legend of shape suffixes: Q questions, K ranks, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from retrieval.types import DEFAULT_TENANT, Retriever, SearchMode, SearchRequest, SearchResult
from training.data.library import record_name
from training.errors import IndexNotReady

if TYPE_CHECKING:
    import numpy as np


class Searches(Protocol):
    """An index over the passages of a `TrainingSet`, in their order; the joint trainer's shards are one."""

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of each query, best first.

        Args:
            queries_QD: float32[num_queries, dim].
            k: Rows wanted.

        Returns:
            rows int64[num_queries, num_found] and scores float32[num_queries, num_found] with num_found <= k;
            row -1 fills up where a query has fewer.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """A passage that a query found."""

    passage_id: str | None
    """Its id in the training set; None where the set does not have it."""
    score: float
    """Higher is better."""


class PassageRanker(Protocol):
    """Anything that finds passages by words."""

    async def rank(self, queries: Sequence[str], k: int) -> list[list[RankedPassage]]:
        """Return up to `k` passages per query, best first."""
        ...


class RetrieverRanker:
    """Ranks by a live `Retriever`."""

    def __init__(
        self,
        retriever: Retriever,
        known: Container[str],
        *,
        library: str | None = None,
        tenant: str = DEFAULT_TENANT,
        mode: SearchMode = "dense",
        batch_size: int = 64,
    ) -> None:
        """Remember whom to ask.

        Args:
            retriever: Holds the library that the training set was exported from.
            known: Passage ids of the training set.
            library: The library; None for all of the tenant's.
            tenant: Whose passages are searched.
            mode: `dense` gives cosines, for which a relative margin means what the paper means; a fused score
                is normalised within each query.
            batch_size: Queries of one call.
        """
        self._retriever = retriever
        self._known = known
        self._library = library
        self._tenant = tenant
        self._mode: SearchMode = mode
        self._batch_size = batch_size

    async def rank(self, queries: Sequence[str], k: int) -> list[list[RankedPassage]]:
        """Return up to `k` passages per query, best first, from an exact search without reranking.

        Raises:
            IndexNotReady: A shard did not answer: what it holds would be missing without a trace.
            InvalidSearch: `k` is above the retriever's limit.
        """
        ranked: list[list[RankedPassage]] = []
        for start in range(0, len(queries), self._batch_size):
            requests = [
                SearchRequest(
                    query,
                    k=k,
                    library=self._library,
                    tenant=self._tenant,
                    mode=self._mode,
                    rerank="none",
                    exact=True,
                )
                for query in queries[start : start + self._batch_size]
            ]
            ranked += [self._ranked(result) for result in await self._retriever.search(requests)]
        return ranked

    def _ranked(self, result: SearchResult) -> list[RankedPassage]:
        if result.partial:
            raise IndexNotReady(
                f"shards {', '.join(result.missing_shards)} did not answer; start again once they are back"
            )
        return [
            RankedPassage(record_name(passage, self._known), hit.score)
            for hit, passage in zip(result.hits, result.passages, strict=True)
        ]


class IndexRanker:
    """Ranks by an encoder and an index under training."""

    def __init__(
        self,
        searches: Searches,
        embed_queries: Callable[[Sequence[str]], np.ndarray],
        passage_ids: Sequence[str],
        *,
        batch_size: int = 256,
    ) -> None:
        """Remember the parts; `passage_ids` are the set's, in the order of the index's rows."""
        self._searches = searches
        self._embed_queries = embed_queries
        self._passage_ids = passage_ids
        self._batch_size = batch_size

    async def rank(self, queries: Sequence[str], k: int) -> list[list[RankedPassage]]:
        """Return up to `k` passages per query, best first."""
        ranked: list[list[RankedPassage]] = []
        for start in range(0, len(queries), self._batch_size):
            queries_QD = self._embed_queries(queries[start : start + self._batch_size])
            rows_QK, scores_QK = self._searches.search(queries_QD, k)
            ranked += [
                [
                    RankedPassage(self._passage_ids[int(row)], score)
                    for row, score in zip(rows_K.tolist(), scores_K.tolist(), strict=True)
                    if row >= 0
                ]
                for rows_K, scores_K in zip(rows_QK, scores_QK, strict=True)
            ]
        return ranked
