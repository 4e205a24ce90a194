"""Leave one out: a passage is worth what the answer loses without it."""

from __future__ import annotations

from torch import Tensor

from training.losses.agreement import MIN_SPREAD_NATS
from training.losses.output import LossOutput, mean_of
from training.losses.pdist import pdist_loss
from training.losses.shapes import check_shapes


def usefulness(full_log_prob_B: Tensor, without_log_probs_BK: Tensor) -> Tensor:
    """Return how much worse the answer gets when passage j is taken out, in nats per token, [B, K].

    Args:
        full_log_prob_B: Mean log-probability of an answer token with all K passages in the prompt.
        without_log_probs_BK: The same with passage j left out.

    Raises:
        ValueError: Shapes disagree.
    """
    check_shapes(full_log_prob_B=full_log_prob_B, without_log_probs_BK=without_log_probs_BK)
    return full_log_prob_B[:, None] - without_log_probs_BK


def loop_loss(
    log_p_BK: Tensor,
    full_log_prob_B: Tensor,
    without_log_probs_BK: Tensor,
    *,
    teacher_temperature: float,
    passage_mask_BK: Tensor | None = None,
    min_spread_nats: float = MIN_SPREAD_NATS,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """KL divergence from the distribution of usefulness to the retriever's.

        u_ij = log p_LM(a_i | q_i, D_i) - log p_LM(a_i | q_i, D_i without d_ij)   (per token)
        loss = 1/B sum_i KL(softmax_j(sg u_ij / tau_T) || p_R(.|i))

    Args:
        log_p_BK: From `passage_log_probs`, with the retriever's gradient.
        full_log_prob_B: With all passages; it is the same for every j, so it moves the metric, not the loss.
        without_log_probs_BK: One pass a passage, that passage left out; gradients are stopped here.
        teacher_temperature: tau_T in nats per token.
        passage_mask_BK: False where a slot is padding.
        min_spread_nats: Questions whose u spreads less are skipped, as in `pdist_loss`.
        denominator: Replaces B; see `mean_of`.

    Returns:
        The loss; metrics of `pdist_loss`, and `usefulness_nats`, the mean of u over passages.

    Raises:
        ValueError: Shapes disagree.
        ConfigError: The temperature is not above 0.

    Recommendations: for a reader trained on concatenated passages, which `pdist_loss` would judge on single
    passages it never sees alone. Costs K more passes. Two passages that say the same leave each other
    worthless.

    Source: Atlas, https://arxiv.org/abs/2208.03299, section 2.2, leave-one-out perplexity distillation.
    """
    useful_BK = usefulness(full_log_prob_B, without_log_probs_BK).detach()
    check_shapes(log_p_BK=log_p_BK, useful_BK=useful_BK, passage_mask_BK=passage_mask_BK)
    output = pdist_loss(
        log_p_BK,
        useful_BK,
        teacher_temperature=teacher_temperature,
        passage_mask_BK=passage_mask_BK,
        min_spread_nats=min_spread_nats,
        denominator=denominator,
    )
    if passage_mask_BK is None:
        mean = useful_BK.mean()
    else:
        mean = mean_of(useful_BK.masked_fill(~passage_mask_BK, 0.0).sum(), passage_mask_BK.sum(), None)
    return LossOutput(output.loss, {**output.metrics, "usefulness_nats": mean})
