"""The contrastive loss of a step: each question against the passages of all questions on all ranks.

Shapes: B questions of this rank, P passages of a question, the positive first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import DataError
from training.joint.config import LossConfig
from training.joint.encoder_tower import EncoderTower
from training.joint.selection import Selection, is_wrong
from training.losses import NO_PASSAGE, GradCache, contrastive_loss
from training.types import TrainingPassage


class ContrastivePass:
    """Computes the loss over all of a rank's questions at once, in as little memory as asked."""

    def __init__(
        self, encoder: EncoderTower, passages: Sequence[TrainingPassage], config: LossConfig
    ) -> None:
        """Prepare.

        Args:
            encoder: The retriever.
            passages: All that can be retrieved, by row.
            config: Weight, temperature, negatives, and rows encoded at a time.
        """
        self._encoder, self._passages, self._config = encoder, passages, config

    def loss(self, selections: Sequence[Selection]) -> Tensor:
        """Return the weighted loss; its `backward` encodes again where GradCache is asked for.

        Args:
            selections: All parts of this rank's step.

        Raises:
            DataError: A question has no labelled passage: ranks must compare equally many.
        """
        questions = [question for one in selections for question in one.questions]
        rows_BP = torch.tensor([row for one in selections for row in self._rows(one)], dtype=torch.int64)
        columns = [[self._passages[max(row, 0)].full_text for row in column] for column in rows_BP.T.tolist()]
        features = [
            {**self._encoder.features([one.text for one in questions], "query"), "side": "query"},
            *({**self._encoder.features(column, "passage"), "side": "passage"} for column in columns),
        ]
        tower = _BySide(self._encoder)
        ids_BP = rows_BP.to(self._encoder.queries.device)

        def loss_of(vectors: list[Tensor]) -> Tensor:
            return contrastive_loss(
                vectors[0],
                torch.stack(vectors[1:], dim=1),
                temperature=self._config.score_temperature,
                passage_ids_BP=ids_BP,
            ).loss

        if self._config.contrastive_cache_rows:
            cache = GradCache(tower, loss_of, mini_batch_rows=self._config.contrastive_cache_rows)
            return self._config.contrastive_weight * cache(features)
        return self._config.contrastive_weight * loss_of(
            [tower(one)["sentence_embedding"] for one in features]
        )

    def _rows(self, selection: Selection) -> list[list[int]]:
        """Return for each question its positive and its negatives, filled up with `NO_PASSAGE`."""
        width = 1 + self._config.contrastive_negatives
        found = []
        for question, positive, judged, retrieved in zip(
            selection.questions,
            selection.positive_B.tolist(),
            selection.negatives,
            selection.rows_BK.tolist(),
            strict=True,
        ):
            if positive < 0:
                raise DataError(
                    f"question {question.question_id!r} has no labelled passage, which "
                    "loss.contrastive_weight needs; leave such questions out, or set the weight to 0"
                )
            more = [row for row in retrieved if row not in judged and is_wrong(self._passages[row], question)]
            rows = [positive, *judged, *more][:width]
            found.append(rows + [NO_PASSAGE] * (width - len(rows)))
        return found


class _BySide(nn.Module):
    """The encoder as GradCache calls it: the side is one of the features."""

    def __init__(self, encoder: EncoderTower) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, features: dict[str, Any]) -> dict[str, Tensor]:
        tensors = {name: value for name, value in features.items() if name != "side"}
        return {"sentence_embedding": self._encoder(tensors, features["side"])}
