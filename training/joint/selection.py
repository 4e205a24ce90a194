"""What each question of a step trains on: passages of the index, put in order by the fresh encoder.

Shapes: B questions, K passages a question, C = k * rerank candidates, U different passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.data.answers import AnswerText
from training.errors import DataError
from training.joint.config import SearchConfig
from training.joint.encoder_tower import EncoderTower
from training.types import TrainingPassage, TrainingQuestion

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""float32[B, D] and k to rows int64[B, k] and scores float32[B, k]; the step is the caller's to add."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The questions of one part of a step and the rows of their passages."""

    questions: tuple[TrainingQuestion, ...]
    """B of them."""
    rows_BK: np.ndarray
    """int64[B, K]: retrieved passages, best first."""
    positive_B: np.ndarray
    """int64[B]: a labelled right passage; -1 where none is known."""
    negatives: tuple[tuple[int, ...], ...]
    """Rows of passages judged or mined to be wrong, for each question."""
    metrics: dict[str, float]
    """Recall among the K passages, and how far the fresh order is from the index's."""


class Selector:
    """Chooses passages for questions; holds no weights of its own."""

    def __init__(
        self, encoder: EncoderTower, passages: Sequence[TrainingPassage], config: SearchConfig
    ) -> None:
        """Prepare.

        Args:
            encoder: The tower under training.
            passages: All that can be retrieved; the row of a passage is its position.
            config: How many are fetched and kept.

        Raises:
            DataError: There are fewer passages than a question trains on.
        """
        if len(passages) < config.k:
            raise DataError(
                f"{len(passages):,} passages are fewer than search.k={config.k}; give more, or a smaller k"
            )
        self._encoder, self._passages, self._config = encoder, passages, config
        self._row_of = {passage.passage_id: row for row, passage in enumerate(passages)}

    @torch.no_grad()
    def select(self, questions: Sequence[TrainingQuestion], search: Search) -> Selection:
        """Return the passages each question trains on.

        Raises:
            IndexNotReady: A part of the index did not answer: a step never trains on fewer passages.
        """
        k, num_fetched = self._config.k, min(self._config.k * self._config.rerank, len(self._passages))
        queries_BD = self._encoder.embed([question.text for question in questions], "query")
        rows_BC, _ = search(queries_BD.cpu().numpy(), num_fetched)
        kept_BK = rows_BC[:, :k]
        if num_fetched > k:
            distinct_U, places_BC = np.unique(rows_BC, return_inverse=True)
            fresh_UD = self._encoder.embed([self._passages[row].full_text for row in distinct_U], "passage")
            scores_BU = (queries_BD @ fresh_UD.T).cpu().numpy()
            scores_BC = np.take_along_axis(scores_BU, places_BC.reshape(rows_BC.shape), axis=1)
            order_BC = np.lexsort((rows_BC, -scores_BC), axis=1)
            kept_BK = np.take_along_axis(rows_BC, order_BC[:, :k], axis=1)
        positives = [self._rows(question.positive_ids) for question in questions]
        return Selection(
            questions=tuple(questions),
            rows_BK=kept_BK,
            positive_B=np.array([rows[0] if rows else -1 for rows in positives], np.int64),
            negatives=tuple(self._rows(question.negative_ids) for question in questions),
            metrics=_metrics(rows_BC[:, :k], kept_BK, positives),
        )

    def _rows(self, passage_ids: Sequence[str]) -> tuple[int, ...]:
        return tuple(self._row_of[one] for one in passage_ids if one in self._row_of)


def is_wrong(passage: TrainingPassage, question: TrainingQuestion) -> bool:
    """Return whether a passage is neither labelled right for a question nor holds an answer of it."""
    return passage.passage_id not in question.positive_ids and not AnswerText(passage.text).holds(
        question.answers
    )


def _metrics(
    indexed_BK: np.ndarray, kept_BK: np.ndarray, positives: Sequence[Sequence[int]]
) -> dict[str, float]:
    labelled = [(kept_K, right) for kept_K, right in zip(kept_BK.tolist(), positives, strict=True) if right]
    pairs = zip(indexed_BK.tolist(), kept_BK.tolist(), strict=True)
    overlap = [len(set(indexed) & set(kept)) / len(kept) for indexed, kept in pairs]
    recalled = [float(bool(set(kept_K) & set(right))) for kept_K, right in labelled]
    return {
        "search/recall": float(np.mean(recalled)) if recalled else 0.0,
        "search/overlap": float(np.mean(overlap)),
    }
