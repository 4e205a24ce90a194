"""One search over all shards of an index: embed, find, fuse, rerank, diversify, expand, fetch passages.

The legs are fused on the candidates of all shards together, and BM25 counts over all of them, so that the
same chunks give the same answer however they are spread over shards. Every call names one index version.
A shard that fails or is too slow is left out and named; a chunk deleted half-way is left out too, and
the next best takes its place.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.filters import FieldType, check_known
from retrieval.lexical.tokens import query_terms
from retrieval.ranking.candidate_list import CandidateList
from retrieval.ranking.cross_encoder import CrossEncoderReranker
from retrieval.ranking.passage_fetch import PassageFetch
from retrieval.ranking.scatter import LEGS_SHARE, STATS_SHARE, Scatter
from retrieval.ranking.stages import OptionalStages
from retrieval.ranking.view import IndexView
from retrieval.reader import Candidates, TermStats
from retrieval.requests import check_searches
from retrieval.types import DEFAULT_TENANT, Explanation, Passage, Rerank, SearchRequest, SearchResult, Stage
from retrieval.vectors.codecs import unit


class Searcher:
    """A `Retriever` over the shards of an index; belongs to one event loop."""

    def __init__(
        self,
        view_of: Callable[[str | None], IndexView],
        config: RetrievalConfig,
        cross_encoder: CrossEncoderReranker | None = None,
    ) -> None:
        """Prepare.

        Args:
            view_of: Returns what answers for an index version or alias, None for the active one; raises
                UnknownVersion. Called once a search.
            config: Limits, weights and budgets.
            cross_encoder: None for the one `config.cross_encoder` names, if any.
        """
        self._view_of = view_of
        self._config = config
        if cross_encoder is None and config.cross_encoder:
            cross_encoder = CrossEncoderReranker(
                config.cross_encoder, device=config.embed_device, num_threads=config.embed_threads
            )
        self._stages = OptionalStages(config, cross_encoder)
        self._embedder_checked: tuple[object, str] | None = None

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`.

        Raises:
            InvalidSearch: A request is out of its bounds.
            UnknownVersion: A request names a version that is not there.
            IndexUnavailable: No shard could answer in time.
        """
        if not requests:
            return []
        check_searches(requests, self._config)
        groups: dict[tuple[str | None, float | None], list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[request.version, request.deadline_s].append(position)
        found = await asyncio.gather(
            *(
                self._search(
                    self._view_of(version), [requests[position] for position in positions], deadline_s
                )
                for (version, deadline_s), positions in groups.items()
            )
        )
        results: dict[int, SearchResult] = {}
        for positions, group in zip(groups.values(), found, strict=True):
            results.update(zip(positions, group, strict=True))
        return [results[position] for position in range(len(requests))]

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks of the active version; see `Retriever.passages`.

        Raises:
            IndexUnavailable: A shard could not answer: absent and deleted would look alike.
        """
        if not chunk_ids:
            return []
        view = self._view_of(None)
        scatter = Scatter(view.shards, self._config.call_timeout_s)
        answers = await scatter.ask(lambda shard: shard.passages(view.version, chunk_ids, tenant))
        for error in scatter.lost.values():
            raise error
        known = {chunk_id: passage for answer in answers.values() for chunk_id, passage in answer.items()}
        return [known.get(chunk_id) for chunk_id in chunk_ids]

    async def _search(
        self, view: IndexView, requests: list[SearchRequest], deadline_s: float | None
    ) -> list[SearchResult]:
        """Answer requests that share a version and a deadline."""
        patience_s = self._config.search_deadline_s if len(view.shards) > 1 else self._config.call_timeout_s
        scatter = Scatter(view.shards, deadline_s or patience_s)
        started = time.perf_counter()
        if deadline_s is None:
            # A model that is still loading is worth the wait unless the caller says otherwise.
            vectors_QD, tokens = await self._embed(view, requests)
            scatter.started = time.monotonic()
        else:
            vectors_QD, tokens = await self._embed_by(view, requests, scatter)
        embed_ms = (time.perf_counter() - started) * 1000
        begun = time.perf_counter()
        lists = await self._candidates(view, scatter, requests, vectors_QD)
        await self._rerank(view, scatter, lists, tokens)
        diverse = [ranked for ranked in lists if ranked.request.mmr is not None]
        if diverse:
            await self._stages.mmr(view, scatter, diverse)
        fetch = PassageFetch(view, scatter, self._config)
        found = await fetch.fetch(lists)
        search_ms = (time.perf_counter() - begun) * 1000
        missing = tuple(sorted(scatter.lost))
        return [
            SearchResult(
                hits=tuple(ranked.hit(chunk_id, rank) for rank, chunk_id in enumerate(passages)),
                passages=tuple(passages.values()),
                index_version=view.version,
                # Of several shards the sum: it grows with every change of any of them.
                seq=sum(ranked.seqs.values()),
                partial=bool(missing),
                missing_shards=missing,
                embed_ms=embed_ms,
                search_ms=search_ms,
                stages=(Stage("embed", embed_ms), *ranked.stages),
                explanation=self._explained(view, ranked) if ranked.request.explain else None,
            )
            for ranked, passages in zip(lists, found, strict=True)
        ]

    async def _embed_by(
        self, view: IndexView, requests: list[SearchRequest], scatter: Scatter
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        try:
            return await asyncio.wait_for(self._embed(view, requests), scatter.remaining_s(LEGS_SHARE))
        except TimeoutError as error:
            raise IndexUnavailable(
                f"the query was not embedded within deadline_s={scatter.time_s:g}; "
                "ask with a longer one, or with mode='lexical', which needs no embedding"
            ) from error

    async def _embed(
        self, view: IndexView, requests: list[SearchRequest]
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Return float32[num_requests, dim] (zeros where only words count), and token vectors by position."""
        with_tokens = [
            position
            for position, request in enumerate(requests)
            if "maxsim" in self._rerankers(view, request) and view.spec.tokens != "none"
        ]
        plain = [
            position
            for position, request in enumerate(requests)
            if request.mode != "lexical" and position not in set(with_tokens)
        ]
        vectors_QD = np.zeros((len(requests), view.spec.dim or view.spec.model_dim), np.float32)
        tokens: dict[int, np.ndarray] = {}
        if not with_tokens and not plain:
            return vectors_QD, tokens
        await self._check_embedder(view)
        if with_tokens:
            vectors_ND, of_queries = await view.embedder.embed_queries_with_tokens(
                [requests[position].query for position in with_tokens]
            )
            vectors_QD[with_tokens] = unit(vectors_ND, view.spec.model_dim, view.spec.dim)
            tokens.update(zip(with_tokens, of_queries, strict=True))
        if plain:
            vectors_ND = await view.embedder.embed_queries([requests[position].query for position in plain])
            vectors_QD[plain] = unit(vectors_ND, view.spec.model_dim, view.spec.dim)
        return vectors_QD, tokens

    async def _check_embedder(self, view: IndexView) -> None:
        """Refuse to compare vectors of two models.

        Raises:
            IndexUnavailable: The view's embedder is not the one that made its version.
        """
        if self._embedder_checked == (view.embedder, view.version):
            return
        info = await view.embedder.info()
        if info.model_hash != view.spec.model_hash:
            raise IndexUnavailable(
                f"index version {view.version} was made by model {view.spec.model_hash}, but the embedder is "
                f"{info.model_id!r} ({info.model_hash}); load the former or build a version with the latter"
            )
        self._embedder_checked = (view.embedder, view.version)

    async def _candidates(
        self, view: IndexView, scatter: Scatter, requests: list[SearchRequest], vectors_QD: np.ndarray
    ) -> list[CandidateList]:
        stats = await self._term_stats(view, scatter, requests)
        answers = await scatter.ask(
            lambda shard: shard.candidates(
                view.version, requests, vectors_QD, stats, scatter.remaining_s(LEGS_SHARE)
            ),
            share=LEGS_SHARE,
        )
        if not scatter.lost:  # A lost shard may be the one that knows a field.
            _check_fields(requests, list(answers.values()))
        started = time.perf_counter()
        lists = [
            CandidateList(
                request, {shard: answer[position] for shard, answer in answers.items()}, self._config
            )
            for position, request in enumerate(requests)
        ]
        fuse_ms = (time.perf_counter() - started) * 1000
        for ranked in lists:
            if ranked.request.mode == "hybrid":
                ranked.stages.append(Stage("fuse", fuse_ms))
        return lists

    async def _term_stats(
        self, view: IndexView, scatter: Scatter, requests: Sequence[SearchRequest]
    ) -> TermStats | None:
        """Return the statistics of all shards together; None where one shard is all there is."""
        if len(view.shards) == 1:
            return None
        terms = list(
            dict.fromkeys(
                term for request in requests if request.mode != "dense" for term in self._terms(request)
            )
        )
        if not terms:
            return None
        answers = await scatter.ask(
            lambda shard: shard.term_stats(view.version, terms, scatter.remaining_s(STATS_SHARE)),
            share=STATS_SHARE,
        )
        parts = answers.values()
        return TermStats(
            num_chunks=sum(part.num_chunks for part in parts),
            num_terms=sum(part.num_terms for part in parts),
            chunks_with={term: sum(part.chunks_with.get(term, 0) for part in parts) for term in terms},
        )

    async def _rerank(
        self,
        view: IndexView,
        scatter: Scatter,
        lists: list[CandidateList],
        tokens: dict[int, np.ndarray],
    ) -> None:
        empty_TD = np.zeros((0, view.spec.model_dim), np.float32)
        by_tokens = [
            (ranked, tokens.get(position, empty_TD))
            for position, ranked in enumerate(lists)
            if "maxsim" in self._rerankers(view, ranked.request)
        ]
        if by_tokens:
            await self._stages.maxsim(view, scatter, by_tokens)
        by_model = [ranked for ranked in lists if ranked.request.rerank == "cross_encoder"]
        if by_model:
            await self._stages.cross_encoder(view, scatter, by_model)

    @staticmethod
    def _rerankers(view: IndexView, request: SearchRequest) -> tuple[Rerank, ...]:
        """Return what reorders a request's candidates, in order: MaxSim first, it is cheap."""
        has_tokens = view.spec.tokens != "none"
        if request.rerank == "auto":
            return ("maxsim",) if has_tokens and request.mode == "hybrid" else ()
        if request.rerank == "cross_encoder":
            return ("maxsim", "cross_encoder") if has_tokens else ("cross_encoder",)
        return () if request.rerank == "none" else (request.rerank,)

    def _terms(self, request: SearchRequest) -> list[str]:
        return query_terms(request.query, self._config.max_query_terms)

    def _explained(self, view: IndexView, ranked: CandidateList) -> Explanation:
        terms = () if ranked.request.mode == "dense" else self._terms(ranked.request)
        return ranked.explanation(view.version, view.epoch, terms)


def _check_fields(requests: list[SearchRequest], answers: list[list[Candidates]]) -> None:
    """Check that each field a filter names is known to a shard; raises InvalidFilter."""
    for position, request in enumerate(requests):
        found = [answer[position] for answer in answers]
        if request.filter is not None and found and all(one.unknown_fields for one in found):
            known: dict[str, FieldType] = {}
            for one in found:
                known.update(one.known_fields)
            check_known(request.filter, known)
