"""Marginal likelihood of the answer, trained into retriever and reader at once."""

from __future__ import annotations

from torch import Tensor

from training.losses.marginal import sequence_marginals, token_marginals
from training.losses.output import LossOutput, mean_of


def rag_token_loss(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Negative marginal log-likelihood, the passage summed out at every token.

        loss = - sum_i sum_t log sum_j p_R(j|i) p_LM(a_it | q_i, d_ij, a_i<t) / number of answer tokens

    Gradients reach retriever and reader. With the masked tokens of a cloze in place of an answer this is
    REALM's pre-training loss, which also sums the passage out at every masked token.

    Args:
        log_p_BK: From `passage_log_probs`.
        token_log_probs_BKL: From `answer_log_probs`.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.
        denominator: Replaces the number of answer tokens; see `mean_of`.

    Returns:
        The loss; metric `marginal_nats_per_token` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: answers assembled from several passages. It is already a reader loss: do not add
    `parallel_lm_loss`. transformers' `RagTokenForGeneration.get_nll` is this value times the number of
    tokens.

    Source: RAG, https://arxiv.org/abs/2005.11401, section 2.1; REALM, https://arxiv.org/abs/2002.08909,
    equation 1.
    """
    marginals_BL = token_marginals(log_p_BK, token_log_probs_BKL, answer_mask_BL, passage_mask_BK)
    total, num_tokens = -marginals_BL.sum(), answer_mask_BL.sum()
    per_token = mean_of(total.detach(), num_tokens, None)
    return LossOutput(mean_of(total, num_tokens, denominator), {"marginal_nats_per_token": per_token})


def rag_sequence_loss(
    log_p_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask_BL: Tensor,
    *,
    passage_mask_BK: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Negative marginal log-likelihood, the passage summed out once for the whole answer.

        loss = - 1/B sum_i log sum_j p_R(j|i) prod_t p_LM(a_it | q_i, d_ij, a_i<t)

    Gradients reach retriever and reader.

    Args:
        log_p_BK: From `passage_log_probs`.
        token_log_probs_BKL: From `answer_log_probs`.
        answer_mask_BL: From `shared_answer_mask`.
        passage_mask_BK: False where a slot is padding.
        denominator: Replaces B; see `mean_of`.

    Returns:
        The loss; metric `marginal_nats_per_answer` of this batch.

    Raises:
        ValueError: Shapes disagree.

    Recommendations: short answers found in one passage. Long answers make one passage take the whole
    posterior, since differences add up over tokens. transformers' `RagSequenceForGeneration.get_nll` is this
    value times B.

    Source: RAG, https://arxiv.org/abs/2005.11401, section 2.1.
    """
    marginals_B = sequence_marginals(log_p_BK, token_log_probs_BKL, answer_mask_BL, passage_mask_BK)
    total, count = -marginals_B.sum(), marginals_B.shape[0]
    per_answer = mean_of(total.detach(), count, None)
    return LossOutput(mean_of(total, count, denominator), {"marginal_nats_per_answer": per_answer})
