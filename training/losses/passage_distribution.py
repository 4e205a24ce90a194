"""The retriever's distribution over the passages of a question."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.shapes import check_positive, check_shapes, widen


def passage_log_probs(
    scores_BK: Tensor,
    *,
    temperature: float,
    passage_mask_BK: Tensor | None = None,
    null_scores_B: Tensor | None = None,
) -> Tensor:
    """Return log p(j|i) = log_softmax_j(score_ij / temperature) over the passages that are there.

    The same function makes the student p_R (from query-passage scores) and the teacher (from answer
    likelihoods).

    A slot without a passage gets about -1e38 (float32): probability exactly 0, and finite, so that 0 log 0 is
    0 and not NaN. It takes no gradient. A question without any passage gets equal values in every slot, also
    without gradient.

    Args:
        scores_BK: Similarities, any floating dtype.
        temperature: Divides the scores, > 0. Inner products of unnormalised d-dimensional vectors want about
            sqrt(d) times what cosines want: Atlas's 0.01 on scores divided by sqrt(768) is 0.28 on the raw
            product.
        passage_mask_BK: False where a slot is padding; None when all slots are filled.
        null_scores_B: Score of the null passage (an empty context), which is always there. It becomes the
            last slot, K + 1 in all, and lets a question say that no passage helps (REALM, section 3.3).

    Returns:
        float32 (float64 for float64 scores) [B, K], or [B, K + 1] with a null passage.

    Raises:
        ValueError: Shapes disagree.
        ConfigError: The temperature is not above 0.
    """
    check_shapes(scores_BK=scores_BK, passage_mask_BK=passage_mask_BK, null_scores_B=null_scores_B)
    check_positive("temperature", temperature)
    logits_BK = widen(scores_BK)
    if null_scores_B is not None:
        logits_BK = torch.cat((logits_BK, widen(null_scores_B)[:, None].to(logits_BK.dtype)), dim=1)
        passage_mask_BK = with_null_slot(passage_mask_BK)
    logits_BK = logits_BK / temperature
    if passage_mask_BK is not None:
        # Half the smallest number leaves room for what is subtracted later.
        logits_BK = logits_BK.masked_fill(~passage_mask_BK, torch.finfo(logits_BK.dtype).min / 2)
    return torch.log_softmax(logits_BK, dim=1)


def with_null_slot(passage_mask_BK: Tensor | None) -> Tensor | None:
    """Return the mask with a last slot that is always filled; None stays None, all slots filled."""
    if passage_mask_BK is None:
        return None
    return torch.cat((passage_mask_BK, torch.ones_like(passage_mask_BK[:, :1])), dim=1)
