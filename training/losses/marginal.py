"""Probabilities of the answer with the passage summed out."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.answer_likelihood import clean_token_log_probs
from training.losses.shapes import check_shapes


def token_marginals(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    passage_mask_BK: Tensor | None = None,
) -> Tensor:
    """Return log sum_j p_R(j|i) p_LM(a_t | q_i, d_ij, a_<t) of every token.

    Each token may come from another passage.

    Args:
        log_p_BK: From `passage_log_probs`.
        token_log_probs_BKL: From `answer_log_probs`.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.

    Returns:
        [B, L], 0 where the mask is false.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(log_p_BK=log_p_BK, token_log_probs_BKL=token_log_probs_BKL, answer_mask_BL=answer_mask_BL)
    log_probs_BKL = clean_token_log_probs(token_log_probs_BKL, answer_mask_BL, passage_mask_BK)
    return torch.logsumexp(log_p_BK[:, :, None] + log_probs_BKL, dim=1).masked_fill(~answer_mask_BL, 0.0)


def sequence_marginals(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    passage_mask_BK: Tensor | None = None,
) -> Tensor:
    """Return log sum_j p_R(j|i) p_LM(a | q_i, d_ij): the whole answer comes from one passage.

    Args:
        log_p_BK: From `passage_log_probs`.
        token_log_probs_BKL: From `answer_log_probs`.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.

    Returns:
        [B], 0 for a question without answer tokens.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(log_p_BK=log_p_BK, token_log_probs_BKL=token_log_probs_BKL, answer_mask_BL=answer_mask_BL)
    log_probs_BKL = clean_token_log_probs(token_log_probs_BKL, answer_mask_BL, passage_mask_BK)
    marginals_B = torch.logsumexp(log_p_BK + log_probs_BKL.sum(dim=2), dim=1)
    return marginals_B.masked_fill(~answer_mask_BL.any(dim=1), 0.0)
