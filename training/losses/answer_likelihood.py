"""How likely each passage makes the answer, from the log-probabilities of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.shapes import check_shapes, widen


def shared_answer_mask(
    answer_mask: Tensor, passage_mask_BK: Tensor | None = None, *, num_passages: int | None = None
) -> Tensor:
    """Return which answer tokens every passage of a question has.

    All passages are judged on the same tokens: a passage whose row was cut short would otherwise look better
    for every token it lost. A question without a passage has no tokens.

    Args:
        answer_mask: bool [B, L], or [B, K, L] where rows can have been cut at different tokens.
        passage_mask_BK: False where a slot is padding.
        num_passages: K, checked against a [B, K, L] mask when given.

    Returns:
        bool [B, L].

    Raises:
        ValueError: Shapes disagree, or a mask is not boolean.
    """
    if answer_mask.ndim == 2:
        check_shapes(answer_mask_BL=answer_mask, passage_mask_BK=passage_mask_BK)
        mask_BL = answer_mask
    else:
        sizes = check_shapes(answer_mask_BKL=answer_mask, passage_mask_BK=passage_mask_BK)
        if num_passages is not None and sizes["K"] != num_passages:
            raise ValueError(f"answer_mask_BKL has K={sizes['K']}, but there are {num_passages} passages")
        absent = torch.zeros_like(answer_mask) if passage_mask_BK is None else ~passage_mask_BK[:, :, None]
        mask_BL = (answer_mask | absent).all(dim=1)
    return mask_BL if passage_mask_BK is None else mask_BL & passage_mask_BK.any(dim=1)[:, None]


def clean_token_log_probs(
    token_log_probs_BKL: Tensor, answer_mask_BL: Tensor, passage_mask_BK: Tensor | None = None
) -> Tensor:
    """Return token log-probabilities in float32 or float64, 0 (and without gradient) where nothing counts.

    Args:
        token_log_probs_BKL: Log p_LM(a_t | question, passage, a_<t); anything at all under the masks, NaN
            included.
        answer_mask_BL: See `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(
        token_log_probs_BKL=token_log_probs_BKL,
        answer_mask_BL=answer_mask_BL,
        passage_mask_BK=passage_mask_BK,
    )
    counts_BKL = answer_mask_BL[:, None, :]
    if passage_mask_BK is not None:
        counts_BKL = counts_BKL & passage_mask_BK[:, :, None]
    return widen(token_log_probs_BKL).masked_fill(~counts_BKL, 0.0)


def mean_answer_log_probs(
    token_log_probs_BKL: Tensor, answer_mask_BL: Tensor, passage_mask_BK: Tensor | None = None
) -> Tensor:
    """Return ell_ij, the mean log-probability of an answer token given passage j, in nats per token.

    Args:
        token_log_probs_BKL: See `clean_token_log_probs`.
        answer_mask_BL: See `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding; its value is 0.

    Returns:
        [B, K], with the gradient of the reader: losses that teach the retriever alone stop it themselves.
    """
    log_probs_BKL = clean_token_log_probs(token_log_probs_BKL, answer_mask_BL, passage_mask_BK)
    return log_probs_BKL.sum(dim=2) / answer_mask_BL.sum(dim=1).clamp(min=1)[:, None]
