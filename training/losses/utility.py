"""What retrieval is worth: REALM's retrieval utility."""

from __future__ import annotations

from torch import Tensor

from training.losses.marginal import token_marginals
from training.losses.output import mean_of
from training.losses.shapes import check_shapes, widen


def retrieval_utility(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    null_log_probs_BL: Tensor,
    answer_mask_BL: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
) -> Tensor:
    """Return by how much retrieval makes an answer token more likely than no passage does, in nats per token.

        mean over tokens of  log sum_j p_R(j|i) p_LM(a_t | q_i, d_ij, a_<t)  -  log p_LM(a_t | q_i, null,
        a_<t)

    Zero or less means that retrieval does not help yet. REALM chooses by it which weights to index.

    Args:
        log_p_BK: From `passage_log_probs`; the null passage may be one of the K.
        token_log_probs_BKL: From `answer_log_probs`.
        null_log_probs_BL: The same tokens with an empty context.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.

    Returns:
        A detached scalar, 0 when there is no answer token.

    Raises:
        ValueError: Shapes disagree.

    Source: REALM, https://arxiv.org/abs/2002.08909, equation 2; per masked token as in its released code.
    """
    check_shapes(null_log_probs_BL=null_log_probs_BL, answer_mask_BL=answer_mask_BL)
    marginals_BL = token_marginals(log_p_BK, token_log_probs_BKL, answer_mask_BL, passage_mask_BK).detach()
    null_BL = widen(null_log_probs_BL.detach()).masked_fill(~answer_mask_BL, 0.0)
    return mean_of((marginals_BL - null_BL).sum(), answer_mask_BL.sum(), None)
