"""The candidates of one query over all shards, and the order that fusion and reranking give them.

A reranker looks at the best candidates only. Its scores are scaled to [0, 1] and mixed in,
score = (1 - weight) * before + weight * scaled, and what it did not look at has 0 for the second term: scores
stay in [0, 1], and whatever was looked at stays ahead of what was not. Its best has 1; 0 is a given span
below that, or its worst where its scores have no unit of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.config import RetrievalConfig
from retrieval.ranking.fusion import adapted_alpha, convex_combination, reciprocal_ranks
from retrieval.reader import Candidates
from retrieval.types import Explanation, Hit, SearchRequest, Stage

_EXPLAINED = 20
"""Candidates of each leg an explanation shows."""


class CandidateList:
    """One query's candidates; `order` is the current order, best first, ties by chunk id."""

    def __init__(
        self, request: SearchRequest, parts: Mapping[str, Candidates], config: RetrievalConfig
    ) -> None:
        """Merge the shards' candidates and fuse the legs on what they are together.

        Args:
            request: The query.
            parts: By shard: its candidates.
            config: `num_candidates`, `alpha`, `adaptive_alpha`, `rrf_constant`.
        """
        self.request = request
        self.stages: list[Stage] = []
        limit = max(request.k, config.num_candidates)
        self.dense = _merged([part.dense for part in parts.values()], limit)
        self.lexical = _merged([part.lexical for part in parts.values()], limit)
        self.shard_of = {
            chunk_id: shard
            for shard, part in parts.items()
            for leg in (part.dense, part.lexical)
            for chunk_id, _ in leg
        }
        self.plans = {shard: part.plan for shard, part in parts.items()}
        self.seqs = {shard: part.seq for shard, part in parts.items()}
        for leg in ("dense", "lexical"):
            if request.mode in ("hybrid", leg):
                self.stages.append(_leg_stage(leg, parts))
        alpha = request.alpha
        if alpha is None:
            adapt = config.adaptive_alpha
            alpha = adapted_alpha(self.dense, self.lexical, config.alpha) if adapt else config.alpha
        if request.fusion == "rrf" and request.mode == "hybrid":
            fused = reciprocal_ranks(self.dense, self.lexical, config.rrf_constant)
        else:
            fused = convex_combination(self.dense, self.lexical, alpha)
        self._fused = fused
        self._scores = fused
        self._rerank_scores: dict[str, float] = {}
        self.order = _ordered(fused)

    def score_of(self, chunk_id: str) -> float:
        """Return a candidate's current score in [0, 1]."""
        return self._scores[chunk_id]

    def rerank(
        self,
        looked_at: Sequence[str],
        scores: Mapping[str, float],
        weight: float,
        span: float | None = None,
    ) -> None:
        """Mix a reranker's scores in.

        Args:
            looked_at: The best candidates, those the reranker was asked about.
            scores: Its scores; one it could not score (a record without token codes) keeps its score.
            weight: Of the reranker, 0 to 1.
            span: How far below the best score of the reranker its scale ends; None for at the worst. A given
                one keeps a reranker that finds all candidates alike from shuffling them.
        """
        if not scores:
            return
        high = max(scores.values())
        width = high - min(scores.values()) if span is None else span
        before = self._scores
        mixed = {chunk_id: (1 - weight) * score for chunk_id, score in before.items()}
        for chunk_id in looked_at:
            score = scores.get(chunk_id)
            if score is None:
                scaled = before[chunk_id]
            else:
                scaled = max(0.0, 1 - (high - score) / width) if width > 0 else 1.0
            mixed[chunk_id] += weight * scaled
        self._scores = mixed
        self._rerank_scores = dict(scores)
        self.order = _ordered(mixed)

    def keep_order(self, order: Sequence[str]) -> None:
        """Put these candidates first in this order, and the others after them as they were."""
        first = set(order)
        self.order = [*order, *(chunk_id for chunk_id in self.order if chunk_id not in first)]

    def hit(self, chunk_id: str, rank: int) -> Hit:
        """Return a candidate with all its scores."""
        dense, lexical = self.dense.get(chunk_id), self.lexical.get(chunk_id)
        mode = self.request.mode
        score = self._scores[chunk_id]
        if mode != "hybrid" and not self._rerank_scores:
            score = self.dense[chunk_id] if mode == "dense" else self.lexical[chunk_id]
        return Hit(
            chunk_id=chunk_id,
            score=score,
            rank=rank,
            dense_score=dense,
            lexical_score=lexical,
            fused_score=self._fused[chunk_id] if mode == "hybrid" else None,
            rerank_score=self._rerank_scores.get(chunk_id),
        )

    def explanation(self, version: str, epoch: int, terms: Sequence[str]) -> Explanation:
        """Return how the answer came about."""
        return Explanation(
            version=version,
            epoch=epoch,
            plans=self.plans,
            seqs=self.seqs,
            dense=tuple(self.dense.items())[:_EXPLAINED],
            lexical=tuple(self.lexical.items())[:_EXPLAINED],
            terms=tuple(terms),
        )


def _merged(legs: Sequence[Sequence[tuple[str, float]]], limit: int) -> dict[str, float]:
    """Return the best of several shards, best first, ties by chunk id: any sharding gives the same."""
    if len(legs) == 1:
        return dict(legs[0][:limit])
    found = sorted((item for leg in legs for item in leg), key=lambda item: (-item[1], item[0]))
    return dict(found[:limit])


def _ordered(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda chunk_id: (-scores[chunk_id], chunk_id))


def _leg_stage(leg: str, parts: Mapping[str, Candidates]) -> Stage:
    """Return the slowest shard's time of a leg, and who left it out."""
    times = [part.dense_ms if leg == "dense" else part.lexical_ms for part in parts.values()]
    skipped = [f"{shard}: {part.skipped[leg]}" for shard, part in parts.items() if leg in part.skipped]
    return Stage(leg, max(times, default=0.0), "; ".join(skipped) or None)
