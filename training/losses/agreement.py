"""How far retriever (student) and reader (teacher) agree on the passages of a question."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.losses.passage_distribution import passage_log_probs
from training.losses.shapes import check_shapes, widen

MIN_SPREAD_NATS = 1e-4
"""Below this spread of likelihoods, per token, rounding decides which passage is best."""


def rows_with_signal(
    values_BK: Tensor, passage_mask_BK: Tensor | None = None, *, min_spread_nats: float = MIN_SPREAD_NATS
) -> Tensor:
    """Return which questions tell passages apart: max_j - min_j over their passages is at least the spread.

    Args:
        values_BK: Answer log-likelihoods, in nats per token.
        passage_mask_BK: False where a slot is padding.
        min_spread_nats: Smallest difference that counts as one.

    Returns:
        bool [B]; false for questions with fewer than two passages.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(values_BK=values_BK, passage_mask_BK=passage_mask_BK)
    if passage_mask_BK is None:
        passage_mask_BK = torch.ones_like(values_BK, dtype=torch.bool)
    values_BK = values_BK.detach()
    highest_B = values_BK.masked_fill(~passage_mask_BK, -math.inf).amax(dim=1)
    lowest_B = values_BK.masked_fill(~passage_mask_BK, math.inf).amin(dim=1)
    return (highest_B - lowest_B >= min_spread_nats) & (passage_mask_BK.sum(dim=1) >= 2)


def entropy_share(log_p_BK: Tensor, passage_mask_BK: Tensor | None = None) -> Tensor:
    """Return each question's entropy divided by its maximum, ln of its number of passages.

    Args:
        log_p_BK: From `passage_log_probs`.
        passage_mask_BK: False where a slot is padding.

    Returns:
        [B] in [0, 1]; 0 is all on one passage, 1 is no opinion. Means nothing with fewer than two passages.

    Raises:
        ValueError: Shapes disagree.
    """
    sizes = check_shapes(log_p_BK=log_p_BK, passage_mask_BK=passage_mask_BK)
    entropy_B = -(log_p_BK.exp() * log_p_BK).sum(dim=1)
    if passage_mask_BK is None:
        return entropy_B / math.log(max(sizes["K"], 2))
    return entropy_B / passage_mask_BK.sum(dim=1).clamp(min=2).to(entropy_B.dtype).log()


def rank_correlation(left_BK: Tensor, right_BK: Tensor, passage_mask_BK: Tensor | None = None) -> Tensor:
    """Return Spearman's correlation of two orders of passages, ties sharing their mean rank.

    Args:
        left_BK: Values to rank.
        right_BK: Values to rank.
        passage_mask_BK: False where a slot is padding.

    Returns:
        [B] in [-1, 1]; 0 where one side is constant.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(left_BK=left_BK, right_BK=right_BK, passage_mask_BK=passage_mask_BK)
    if passage_mask_BK is None:
        passage_mask_BK = torch.ones_like(left_BK, dtype=torch.bool)
    left_BK = _centred_ranks(widen(left_BK.detach()), passage_mask_BK)
    right_BK = _centred_ranks(widen(right_BK.detach()), passage_mask_BK).to(left_BK.dtype)
    norm_B = (left_BK.square().sum(dim=1) * right_BK.square().sum(dim=1)).sqrt()
    return (left_BK * right_BK).sum(dim=1) / norm_B.clamp(min=torch.finfo(norm_B.dtype).tiny)


def agreement_metrics(
    log_p_BK: Tensor,
    answer_log_probs_BK: Tensor,
    *,
    teacher_temperature: float,
    passage_mask_BK: Tensor | None = None,
    min_spread_nats: float = MIN_SPREAD_NATS,
) -> dict[str, Tensor]:
    """Return what to watch while a reader teaches a retriever.

    Args:
        log_p_BK: The student's log-probabilities, from `passage_log_probs`.
        answer_log_probs_BK: What the teacher ranks by, in nats per token.
        teacher_temperature: Divides the teacher's values.
        passage_mask_BK: False where a slot is padding.
        min_spread_nats: See `rows_with_signal`.

    Returns:
        `teacher_entropy_share`, `student_entropy_share` and `rank_correlation` (means over the questions with
        signal, 0 when there are none) and `rows_without_signal` (a count).

    Raises:
        ValueError: Shapes disagree.
    """
    log_p_BK, values_BK = log_p_BK.detach(), answer_log_probs_BK.detach()
    check_shapes(log_p_BK=log_p_BK, answer_log_probs_BK=values_BK, passage_mask_BK=passage_mask_BK)
    signal_B = rows_with_signal(values_BK, passage_mask_BK, min_spread_nats=min_spread_nats)
    log_teacher_BK = passage_log_probs(
        values_BK, temperature=teacher_temperature, passage_mask_BK=passage_mask_BK
    )
    shares = {
        "teacher_entropy_share": entropy_share(log_teacher_BK, passage_mask_BK),
        "student_entropy_share": entropy_share(log_p_BK, passage_mask_BK),
        "rank_correlation": rank_correlation(log_p_BK, values_BK, passage_mask_BK),
    }
    count = signal_B.sum().clamp(min=1)
    metrics = {name: value_B.masked_fill(~signal_B, 0.0).sum() / count for name, value_B in shares.items()}
    return metrics | {"rows_without_signal": (~signal_B).sum()}


def _centred_ranks(values_BK: Tensor, passage_mask_BK: Tensor) -> Tensor:
    """Return ranks minus their mean, 0 in padding; K is small, so all pairs are compared."""
    others_BKK = passage_mask_BK[:, None, :]
    below_BK = ((values_BK[:, None, :] < values_BK[:, :, None]) & others_BKK).sum(dim=2)
    equal_BK = ((values_BK[:, None, :] == values_BK[:, :, None]) & others_BKK).sum(dim=2)
    ranks_BK = (below_BK + equal_BK / 2).to(values_BK.dtype)
    mean_B1 = (ranks_BK * passage_mask_BK).sum(dim=1, keepdim=True) / passage_mask_BK.sum(
        dim=1, keepdim=True
    ).clamp(min=1)
    return (ranks_BK - mean_B1) * passage_mask_BK
