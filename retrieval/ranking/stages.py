"""The optional stages of a search: MaxSim, a cross-encoder, maximal marginal relevance.

Each works on a batch of candidate lists at once, within its budget, and notes in every list that it ran, how
long it took, or why it was skipped. A skipped stage leaves the order as it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.ranking.budget import OUT_OF_TIME, StageCosts
from retrieval.ranking.candidate_list import CandidateList
from retrieval.ranking.cross_encoder import CrossEncoderReranker
from retrieval.ranking.maxsim import maxsim
from retrieval.ranking.mmr import mmr_order
from retrieval.ranking.scatter import OPTIONAL_SHARE, Scatter
from retrieval.ranking.view import IndexView
from retrieval.reader import ShardReader
from retrieval.types import Stage

Value = TypeVar("Value")


class OptionalStages:
    """What may reorder candidates, and what each stage has cost lately; one object serves all searches."""

    def __init__(self, config: RetrievalConfig, cross_encoder: CrossEncoderReranker | None) -> None:
        """Prepare.

        Args:
            config: Numbers of candidates, weights and budgets.
            cross_encoder: None where none is configured.
        """
        self._config = config
        self._cross_encoder = cross_encoder
        self._costs = StageCosts()

    async def maxsim(
        self, view: IndexView, scatter: Scatter, queries: Sequence[tuple[CandidateList, np.ndarray]]
    ) -> None:
        """Rerank by the token vectors of queries, float32[num_tokens, dim] each, and of their candidates."""
        lists = [ranked for ranked, _ in queries]
        if view.spec.tokens == "none":
            _skip("maxsim", lists, f"index version {view.version} keeps no token codes")
            return
        looked_at = [self._best(ranked, self._config.rerank_candidates) for ranked in lists]
        budget_ms = self._budget_ms(scatter, len(lists) * self._config.maxsim_budget_ms)
        num_items = sum(map(len, looked_at))
        if not self._costs.fits("maxsim", num_items, budget_ms):
            _skip("maxsim", lists, OUT_OF_TIME)
            return
        started = time.perf_counter()
        wanted = _by_shard(lists, looked_at)
        codes = await _fetch(scatter, wanted, lambda shard, ids: shard.token_codes(view.version, ids))
        if codes is None:
            _skip("maxsim", lists, OUT_OF_TIME)
            return

        def score() -> list[dict[str, float]]:
            return [
                dict(zip(known, maxsim(query_TD, [codes[chunk_id] for chunk_id in known], view.spec.tokens)
                         .tolist(), strict=True))
                for (_, query_TD), ids in zip(queries, looked_at, strict=True)
                for known in ([chunk_id for chunk_id in ids if chunk_id in codes],)
            ]  # fmt: skip

        for ranked, ids, scores in zip(lists, looked_at, await asyncio.to_thread(score), strict=True):
            ranked.rerank(ids, scores, self._config.maxsim_weight, self._config.maxsim_span)
        self._ran("maxsim", lists, num_items, started)

    async def cross_encoder(self, view: IndexView, scatter: Scatter, lists: Sequence[CandidateList]) -> None:
        """Rerank by a model that reads query and passage together."""
        reranker = self._cross_encoder
        if reranker is None:
            _skip("cross_encoder", lists, "no cross_encoder is configured")
            return
        await asyncio.to_thread(reranker.load)
        for ranked in lists:
            ids = self._best(ranked, self._config.cross_encoder_candidates)
            budget_ms = self._budget_ms(scatter, self._config.cross_encoder_budget_ms)
            if not self._costs.fits("cross_encoder", len(ids), budget_ms):
                _skip("cross_encoder", [ranked], OUT_OF_TIME)
                continue
            started = time.perf_counter()
            give_up_at = time.monotonic() + budget_ms / 1000
            tenant = ranked.request.tenant
            passages = await _fetch(
                scatter,
                _by_shard([ranked], [ids]),
                lambda shard, wanted, tenant=tenant: shard.passages(view.version, wanted, tenant),
            )
            known = [chunk_id for chunk_id in ids if passages and chunk_id in passages]
            scores_N = None
            if passages is not None:
                texts = [passages[chunk_id].text for chunk_id in known]
                scores_N = await asyncio.to_thread(reranker.scores, ranked.request.query, texts, give_up_at)
            if scores_N is None:
                self._costs.spent("cross_encoder", len(ids), (time.perf_counter() - started) * 1000)
                _skip("cross_encoder", [ranked], OUT_OF_TIME)
                continue
            scores = dict(zip(known, scores_N.tolist(), strict=True))
            ranked.rerank(ids, scores, self._config.cross_encoder_weight)
            self._ran("cross_encoder", [ranked], len(ids), started)

    async def mmr(self, view: IndexView, scatter: Scatter, lists: Sequence[CandidateList]) -> None:
        """Put relevant hits that are unlike each other first."""
        considered = [self._best(ranked, self._config.mmr_candidates) for ranked in lists]
        started = time.perf_counter()
        wanted = _by_shard(lists, considered)
        vectors = await _fetch(scatter, wanted, lambda shard, ids: shard.vectors(view.version, ids))
        if vectors is None:
            _skip("mmr", lists, OUT_OF_TIME)
            return
        for ranked, ids in zip(lists, considered, strict=True):
            known = [chunk_id for chunk_id in ids if chunk_id in vectors]
            balance = ranked.request.mmr
            if known and balance is not None:
                vectors_ND = np.stack([vectors[chunk_id] for chunk_id in known])
                scores = [ranked.score_of(chunk_id) for chunk_id in known]
                order = mmr_order(scores, vectors_ND, balance, len(known))
                ranked.keep_order([known[position] for position in order])
        self._ran("mmr", lists, sum(map(len, considered)), started)

    def _best(self, ranked: CandidateList, num_candidates: int) -> list[str]:
        return ranked.order[: max(ranked.request.k, num_candidates)]

    @staticmethod
    def _budget_ms(scatter: Scatter, configured_ms: float) -> float:
        return min(configured_ms, scatter.remaining_s(OPTIONAL_SHARE) * 1000)

    def _ran(self, stage: str, lists: Sequence[CandidateList], num_items: int, started: float) -> None:
        ms = (time.perf_counter() - started) * 1000
        self._costs.spent(stage, num_items, ms)
        for ranked in lists:
            ranked.stages.append(Stage(stage, ms))


def _skip(stage: str, lists: Sequence[CandidateList], why: str) -> None:
    for ranked in lists:
        ranked.stages.append(Stage(stage, 0.0, why))


def _by_shard(lists: Sequence[CandidateList], wanted: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return the chunk ids each shard is asked about, each once."""
    by_shard: dict[str, dict[str, None]] = {}
    for ranked, ids in zip(lists, wanted, strict=True):
        for chunk_id in ids:
            by_shard.setdefault(ranked.shard_of[chunk_id], {})[chunk_id] = None
    return {shard: list(ids) for shard, ids in by_shard.items()}


async def _fetch(
    scatter: Scatter,
    wanted: Mapping[str, list[str]],
    question: Callable[[ShardReader, list[str]], Awaitable[Mapping[str, Value]]],
) -> dict[str, Value] | None:
    """Return what the shards know of these chunks; None when one did not answer in time."""
    answers = await scatter.ask(
        lambda shard: question(shard, wanted[shard.name]), share=OPTIONAL_SHARE, names=wanted, optional=True
    )
    if any(name not in answers and name not in scatter.lost for name in wanted):
        return None
    return {chunk_id: value for answer in answers.values() for chunk_id, value in answer.items()}
