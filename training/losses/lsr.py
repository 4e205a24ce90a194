"""LM-supervised retrieval: the divergence of REPLUG, from the retriever to the reader."""

from __future__ import annotations

from torch import Tensor

from training.losses.agreement import MIN_SPREAD_NATS, rows_with_signal
from training.losses.output import LossOutput, mean_of
from training.losses.passage_distribution import passage_log_probs
from training.losses.shapes import check_shapes


def lsr_loss(
    log_p_BK: Tensor,
    answer_log_probs_BK: Tensor,
    *,
    teacher_temperature: float,
    passage_mask_BK: Tensor | None = None,
    min_spread_nats: float = MIN_SPREAD_NATS,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """KL divergence from the retriever's distribution over passages to the reader's.

        loss = 1/B sum_i sum_j p_R(j|i) (log p_R(j|i) - log t_ij),   t_i = softmax_j(sg ell_ij / tau_T)

    Args:
        log_p_BK: From `passage_log_probs`, with the retriever's gradient.
        answer_log_probs_BK: ell, from `mean_answer_log_probs`; its gradient is stopped here.
        teacher_temperature: tau_T in nats per token, beta in the paper.
        passage_mask_BK: False where a slot is padding.
        min_spread_nats: Questions whose ell spreads less are skipped, as in `pdist_loss`.
        denominator: Replaces B; see `mean_of`. Skipped questions stay in B.

    Returns:
        The loss; metrics `kl_nats` (mean over questions with signal) and `rows_without_signal`.

    Raises:
        ValueError: Shapes disagree.
        ConfigError: The temperature is not above 0.

    Recommendations: for a frozen reader. Mode-seeking: it avoids passages the reader dislikes and is content
    with one that it likes, so p_R can collapse on it; prefer `pdist_loss` when several passages matter. A low
    tau_T makes -log t, and with it the gradient, very large: steer tau_T by entropy. REPLUG's released code
    computes the opposite direction, `pdist_loss` divided by K.

    Source: REPLUG, https://arxiv.org/abs/2301.12652, section 4, equation 4; RA-DIT,
    https://arxiv.org/abs/2310.01352.
    """
    sizes = check_shapes(
        log_p_BK=log_p_BK, answer_log_probs_BK=answer_log_probs_BK, passage_mask_BK=passage_mask_BK
    )
    teacher_BK = answer_log_probs_BK.detach()
    log_t_BK = passage_log_probs(teacher_BK, temperature=teacher_temperature, passage_mask_BK=passage_mask_BK)
    signal_B = rows_with_signal(teacher_BK, passage_mask_BK, min_spread_nats=min_spread_nats)
    kl_B = (log_p_BK.exp() * (log_p_BK - log_t_BK)).sum(dim=1).masked_fill(~signal_B, 0.0)
    return LossOutput(
        mean_of(kl_B.sum(), sizes["B"], denominator),
        {
            "kl_nats": mean_of(kl_B.detach().sum(), signal_B.sum(), None),
            "rows_without_signal": (~signal_B).sum(),
        },
    )
