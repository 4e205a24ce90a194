"""EMDR2: the marginal likelihood with the reader held still, so that it teaches the retriever alone."""

from __future__ import annotations

from torch import Tensor

from training.losses.output import LossOutput
from training.losses.rag import rag_sequence_loss, rag_token_loss


def emdr2_token_loss(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Negative marginal log-likelihood at every token, without gradient into the reader.

        loss = - sum_i sum_t log sum_j p_R(j|i) sg p_LM(a_it | q_i, d_ij, a_i<t) / number of answer tokens

    The gradient of log p_R(j|i) is the posterior of passage j given the token, as in an EM step.

    Args:
        log_p_BK: From `passage_log_probs`, with the retriever's gradient.
        token_log_probs_BKL: From `answer_log_probs`; its gradient is stopped here.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.
        denominator: Replaces the number of answer tokens; see `mean_of`.

    Returns:
        The loss; metric `marginal_nats_per_token` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: beside a reader loss of its own (`parallel_lm_loss` or `concat_lm_loss`). Needs no
    teacher temperature. This per-token form is what the released code of EMDR2 and Atlas trains; the paper
    writes the sequence form.

    Source: EMDR2, https://arxiv.org/abs/2106.05346, section 2.3.
    """
    return rag_token_loss(
        log_p_BK,
        token_log_probs_BKL.detach(),
        answer_mask_BL,
        passage_mask_BK=passage_mask_BK,
        denominator=denominator,
    )


def emdr2_sequence_loss(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Negative marginal log-likelihood of the whole answer, without gradient into the reader.

        loss = - 1/B sum_i log sum_j p_R(j|i) sg p_LM(a_i | q_i, d_ij)

    Args:
        log_p_BK: From `passage_log_probs`, with the retriever's gradient.
        token_log_probs_BKL: From `answer_log_probs`; its gradient is stopped here.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.
        denominator: Replaces B; see `mean_of`.

    Returns:
        The loss; metric `marginal_nats_per_answer` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: short answers. Long ones make the posterior one-hot, and the loss a cross-entropy on one
    passage.

    Source: EMDR2, https://arxiv.org/abs/2106.05346, equation 5.
    """
    return rag_sequence_loss(
        log_p_BK,
        token_log_probs_BKL.detach(),
        answer_mask_BL,
        passage_mask_BK=passage_mask_BK,
        denominator=denominator,
    )
