"""Losses of the reader: answers given retrieved passages."""

from __future__ import annotations

from torch import Tensor

from training.losses.answer_likelihood import clean_token_log_probs, shared_answer_mask
from training.losses.output import LossOutput, mean_of
from training.losses.shapes import check_shapes, widen


def parallel_lm_loss(
    token_log_probs_BKL: Tensor,
    answer_mask: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
    log_p_BK: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Negative log-likelihood of the answer with each passage prepended on its own.

        loss = - sum_i sum_j w_ij sum_t log p_LM(a_it | q_i, d_ij, a_i<t) / number of answer tokens

    with w_ij uniform over the question's passages, or sg p_R(j|i). Uniform weights make it the usual mean
    cross-entropy over all answer tokens of all B K rows.

    Args:
        token_log_probs_BKL: From `answer_log_probs`, with gradient.
        answer_mask: bool [B, L] or [B, K, L]; see `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.
        log_p_BK: The retriever's log-probabilities for weighting by relevance; no gradient flows into them.
        denominator: Replaces the number of answer tokens; see `mean_of`.

    Returns:
        The loss; metric `lm_nats_per_token` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: uniform weights while the retriever is untrained, since p_R then trains the reader on few
    passages; p_R weights match inference that mixes passages by relevance. The same forward pass gives the
    teacher of `pdist_loss`, `lsr_loss` and `emdr2_*_loss`.

    Source: RA-DIT, https://arxiv.org/abs/2310.01352, equation 2 (uniform); REPLUG,
    https://arxiv.org/abs/2301.12652, section 3.2 (mixing by p_R).
    """
    sizes = check_shapes(
        token_log_probs_BKL=token_log_probs_BKL, passage_mask_BK=passage_mask_BK, log_p_BK=log_p_BK
    )
    mask_BL = shared_answer_mask(answer_mask, passage_mask_BK, num_passages=sizes["K"])
    nll_BK = -clean_token_log_probs(token_log_probs_BKL, mask_BL, passage_mask_BK).sum(dim=2)
    if log_p_BK is not None:
        weights_BK = widen(log_p_BK.detach()).exp()
    elif passage_mask_BK is not None:
        here_BK = passage_mask_BK.to(nll_BK.dtype)
        weights_BK = here_BK / here_BK.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        weights_BK = 1.0 / sizes["K"]
    total, num_tokens = (weights_BK * nll_BK).sum(), mask_BL.sum()
    per_token = mean_of(total.detach(), num_tokens, None)
    return LossOutput(mean_of(total, num_tokens, denominator), {"lm_nats_per_token": per_token})


def concat_lm_loss(
    token_log_probs_BL: Tensor, answer_mask_BL: Tensor, *, denominator: Tensor | float | None = None
) -> LossOutput:
    """Negative log-likelihood of the answer with all passages in one prompt.

        loss = - sum_i sum_t log p_LM(a_it | q_i, d_i1 .. d_iK, a_i<t) / number of answer tokens

    Args:
        token_log_probs_BL: From `answer_log_probs` with one row a question (its K is 1).
        answer_mask_BL: True for the tokens that are there.
        denominator: Replaces the number of answer tokens; see `mean_of`.

    Returns:
        The loss; metric `lm_nats_per_token` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: this is RAFT when whoever builds the prompts leaves the passage with the answer out of
    some of them and fills up with retrieved distractors. It matches a served prompt, but says nothing about
    single passages: pair it with `loop_loss`, or with a parallel pass.

    Source: RAFT, https://arxiv.org/abs/2403.10131.
    """
    check_shapes(token_log_probs_BL=token_log_probs_BL, answer_mask_BL=answer_mask_BL)
    total = -widen(token_log_probs_BL).masked_fill(~answer_mask_BL, 0.0).sum()
    num_tokens = answer_mask_BL.sum()
    per_token = mean_of(total.detach(), num_tokens, None)
    return LossOutput(mean_of(total, num_tokens, denominator), {"lm_nats_per_token": per_token})
