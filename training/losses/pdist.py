"""Perplexity distillation: the retriever learns the reader's preferences among passages."""

from __future__ import annotations

from torch import Tensor

from training.losses.agreement import MIN_SPREAD_NATS, rows_with_signal
from training.losses.output import LossOutput, mean_of
from training.losses.passage_distribution import passage_log_probs
from training.losses.shapes import check_shapes


def pdist_loss(
    log_p_BK: Tensor,
    answer_log_probs_BK: Tensor,
    *,
    teacher_temperature: float,
    passage_mask_BK: Tensor | None = None,
    min_spread_nats: float = MIN_SPREAD_NATS,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """KL divergence from the reader's distribution over passages to the retriever's.

        loss = 1/B sum_i sum_j t_ij (log t_ij - log p_R(j|i)),   t_i = softmax_j(sg ell_ij / tau_T)

    Args:
        log_p_BK: From `passage_log_probs`, with the retriever's gradient.
        answer_log_probs_BK: ell, from `mean_answer_log_probs`; its gradient is stopped here.
        teacher_temperature: tau_T in nats per token; see `training.losses.temperature`.
        passage_mask_BK: False where a slot is padding.
        min_spread_nats: Questions whose ell spreads less are skipped: their target would be rounding error,
            and would push p_R towards uniform.
        denominator: Replaces B; see `mean_of`. Skipped questions stay in B, so that ranks agree on it.

    Returns:
        The loss; metrics `kl_nats` (mean over questions with signal) and `rows_without_signal`.

    Raises:
        ValueError: Shapes disagree.
        ConfigError: The temperature is not above 0.

    Recommendations: the default among retriever losses. Mass-covering: no useful passage may be missed.
    Summed over K, so the size of the gradient does not depend on the number of passages; Atlas's released
    code divides by K as well (`nn.KLDivLoss()` averages over all elements).

    Source: Atlas, https://arxiv.org/abs/2208.03299, section 2.2, perplexity distillation.
    """
    sizes = check_shapes(
        log_p_BK=log_p_BK, answer_log_probs_BK=answer_log_probs_BK, passage_mask_BK=passage_mask_BK
    )
    teacher_BK = answer_log_probs_BK.detach()
    log_t_BK = passage_log_probs(teacher_BK, temperature=teacher_temperature, passage_mask_BK=passage_mask_BK)
    signal_B = rows_with_signal(teacher_BK, passage_mask_BK, min_spread_nats=min_spread_nats)
    kl_B = (log_t_BK.exp() * (log_t_BK - log_p_BK)).sum(dim=1).masked_fill(~signal_B, 0.0)
    return LossOutput(
        mean_of(kl_B.sum(), sizes["B"], denominator),
        {
            "kl_nats": mean_of(kl_B.detach().sum(), signal_B.sum(), None),
            "rows_without_signal": (~signal_B).sum(),
        },
    )
