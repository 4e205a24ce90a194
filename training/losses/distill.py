"""Distillation of a cross-encoder into the retriever."""

from __future__ import annotations

from functools import lru_cache

import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch import Tensor

from training.losses.output import LossOutput
from training.losses.shapes import check_positive, check_shapes, widen


def distill_loss(
    scores_BK: Tensor,
    cross_encoder_scores_BK: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    passage_mask_BK: Tensor | None = None,
) -> LossOutput:
    """KL divergence from a cross-encoder's distribution over passages to the retriever's.

        loss = tau_R^2 / B sum_i KL(softmax_j(sg c_ij / tau_C) || softmax_j(s_ij / tau_R))

    Computed by sentence-transformers' `DistillKLDivLoss`, which also warns once, with a remedy, when tau_C is
    so low that teacher probabilities underflow.

    Args:
        scores_BK: Query-passage scores s, with the retriever's gradient.
        cross_encoder_scores_BK: Scores c of the same pairs (logits, not probabilities); their gradient is
            stopped.
        student_temperature: tau_R. The factor tau_R^2 keeps the size of gradients at temperatures of 1 and
            above; below 1 the loss shrinks strongly: raise its weight.
        teacher_temperature: tau_C. Match it to the spread of c.
        passage_mask_BK: False where a slot is padding.

    Returns:
        The loss, without metrics.

    Raises:
        ValueError: Shapes disagree, there are fewer than two passages, or a cross-encoder score is NaN.
        ConfigError: A temperature is not above 0.

    Recommendations: beside `contrastive_loss` when a reranker is at hand, before the joint loop starts; it
    also repairs false negatives among mined passages, since the reranker gives them their due.

    Source: Lin et al., https://arxiv.org/abs/2010.11386; temperatures as in Hinton et al.,
    https://arxiv.org/abs/1503.02531.
    """
    check_shapes(
        scores_BK=scores_BK, cross_encoder_scores_BK=cross_encoder_scores_BK, passage_mask_BK=passage_mask_BK
    )
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    scores_BK, teacher_BK = widen(scores_BK), widen(cross_encoder_scores_BK)
    if passage_mask_BK is not None:
        # Finite, so that a probability of 0 times its logarithm is 0; minus infinity in the teacher says
        # "left out on purpose".
        lowest = torch.finfo(scores_BK.dtype).min / 2 * min(student_temperature, 1.0)
        scores_BK = scores_BK.masked_fill(~passage_mask_BK, lowest)
        teacher_BK = teacher_BK.masked_fill(~passage_mask_BK, -torch.inf)
        teacher_BK = teacher_BK.masked_fill(~passage_mask_BK.any(dim=1, keepdim=True), 0.0)
    columns = [scores_BK[:, 0].detach(), *scores_BK.unbind(dim=1)]
    divergence = _divergence(student_temperature, teacher_temperature)
    return LossOutput(divergence.compute_loss_from_embeddings(columns, teacher_BK), {})


@lru_cache(maxsize=16)
def _divergence(student_temperature: float, teacher_temperature: float) -> DistillKLDivLoss:
    """Return the library's loss over given scores; kept, since it inspects its first batch alone."""
    return DistillKLDivLoss(
        torch.nn.Identity(),  # pyright: ignore[reportArgumentType]  # only its `forward` would use a model
        similarity_fct=_scores_of_column,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )


def _scores_of_column(_: Tensor, column_B: Tensor) -> Tensor:
    """Return a column: it holds the scores of passage j already."""
    return column_B
