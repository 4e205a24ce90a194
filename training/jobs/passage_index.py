"""The passages of a training set behind an encoder, in this process: what jobs other than joint search in.

Shapes: Q queries, N passages, D dimensions, K ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from retrieval.types import Hit, Passage, SearchRequest, SearchResult
from training.data import IndexRanker
from training.joint.config import EncoderConfig
from training.joint.encoder_tower import EncoderTower, TowerProbe
from training.types import TrainingPassage


class PassageIndex:
    """An exact index; a `training.data.ranking.Searches`."""

    def __init__(
        self, passages: Sequence[TrainingPassage], encoder: EncoderConfig, device: torch.device
    ) -> None:
        """Encode the passages.

        Args:
            passages: All that can be found; a row is a position here.
            encoder: Which model, and how much it reads.
            device: Where it computes.

        Raises:
            ConfigError: The model cannot be found, or reads less than asked.
        """
        self._passages = tuple(passages)
        self._probe = TowerProbe(EncoderTower(encoder, "frozen", device))
        self._vectors_ND = self._probe.encode([passage.full_text for passage in passages])

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[Q, D]."""
        return self._probe.encode_queries(texts)

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows int64[Q, min(k, N)] and scores float32, best first, equal scores by row."""
        scores_QN = queries_QD @ self._vectors_ND.T
        rows_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
        return rows_QK, np.take_along_axis(scores_QN, rows_QK, axis=1)

    def ranker(self) -> IndexRanker:
        """Return the index behind words instead of vectors."""
        return IndexRanker(self, self.encode_queries, [passage.passage_id for passage in self._passages])

    def answer(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return what a served retriever would, for rollouts of the search loop."""
        rows_QK, scores_QK = self.search(
            self.encode_queries([request.query for request in requests]),
            max(request.k for request in requests),
        )
        return [
            self._result(rows_K[: request.k].tolist(), scores_K[: request.k].tolist())
            for request, rows_K, scores_K in zip(requests, rows_QK, scores_QK, strict=True)
        ]

    def _result(self, rows: Sequence[int], scores: Sequence[float]) -> SearchResult:
        found = [self._passages[row] for row in rows]
        hits = tuple(
            Hit(passage.passage_id, score, rank, dense_score=score)
            for rank, (passage, score) in enumerate(zip(found, scores, strict=True))
        )
        return SearchResult(hits, tuple(_served(passage) for passage in found), "training", 0)


def _served(passage: TrainingPassage) -> Passage:
    return Passage(
        chunk_id=passage.passage_id,
        document_id=passage.passage_id,
        document=passage.title,
        library="",
        text=passage.text,
        start=0,
        end=len(passage.text),
    )
