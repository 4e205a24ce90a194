"""The retriever's loss by its name in a configuration, with one signature for all."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from training.errors import ConfigError
from training.losses.agreement import MIN_SPREAD_NATS, agreement_metrics
from training.losses.answer_likelihood import mean_answer_log_probs, shared_answer_mask
from training.losses.emdr2 import emdr2_sequence_loss, emdr2_token_loss
from training.losses.loop import loop_loss, usefulness
from training.losses.lsr import lsr_loss
from training.losses.output import LossOutput
from training.losses.passage_distribution import passage_log_probs, with_null_slot
from training.losses.pdist import pdist_loss
from training.losses.rag import rag_sequence_loss, rag_token_loss
from training.losses.shapes import check_shapes
from training.losses.utility import retrieval_utility

RetrieverLossName = Literal[
    "pdist", "lsr", "emdr2_token", "emdr2_sequence", "rag_token", "rag_sequence", "loop"
]
RETRIEVER_LOSSES: tuple[RetrieverLossName, ...] = get_args(RetrieverLossName)
"""What a configuration can ask for."""
_MARGINAL = {
    "emdr2_token": emdr2_token_loss,
    "emdr2_sequence": emdr2_sequence_loss,
    "rag_token": rag_token_loss,
    "rag_sequence": rag_sequence_loss,
}


def retriever_loss(
    name: RetrieverLossName,
    scores_BK: Tensor,
    token_log_probs_BKL: Tensor,
    answer_mask: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    passage_mask_BK: Tensor | None = None,
    null_scores_B: Tensor | None = None,
    full_log_prob_B: Tensor | None = None,
    min_spread_nats: float = MIN_SPREAD_NATS,
    denominator: Tensor | float | None = None,
) -> LossOutput:
    """Return the named loss of retriever scores and reader likelihoods.

    Args:
        name: One of `RETRIEVER_LOSSES`.
        scores_BK: Query-passage scores, with the retriever's gradient.
        token_log_probs_BKL: From `answer_log_probs`, row j with passage j prepended; for `loop` row j is the
            prompt of all passages but j. K + 1 rows, the null passage last, when `null_scores_B` is given.
        answer_mask: bool [B, L] or [B, K, L] like the log-probabilities.
        student_temperature: Divides the scores.
        teacher_temperature: Divides the likelihoods; without effect on the marginal losses but for a metric.
        passage_mask_BK: False where a slot is padding.
        null_scores_B: Score of the null passage, which then takes part as slot K.
        full_log_prob_B: Only for `loop`: mean answer log-probability with all passages.
        min_spread_nats: See `rows_with_signal`.
        denominator: Replaces B, or the number of answer tokens in the `_token` losses; see `mean_of`.

    Returns:
        The loss; its own metrics, those of `agreement_metrics`, and with a null passage
        `retrieval_utility_nats`.

    Raises:
        ValueError: Shapes disagree, or `loop` lacks or others carry what is for `loop` alone.
        ConfigError: No loss has this name, or a temperature is not above 0.
    """
    if name not in RETRIEVER_LOSSES:
        raise ConfigError(f"no retriever loss is called {name!r}: choose from {', '.join(RETRIEVER_LOSSES)}")
    if (name == "loop") != (full_log_prob_B is not None) or (name == "loop" and null_scores_B is not None):
        raise ValueError(
            f"{name}: full_log_prob_B belongs to loop, which needs it and takes no null_scores_B"
        )
    log_p_BK = passage_log_probs(
        scores_BK,
        temperature=student_temperature,
        passage_mask_BK=passage_mask_BK,
        null_scores_B=null_scores_B,
    )
    if null_scores_B is not None:
        passage_mask_BK = with_null_slot(passage_mask_BK)
    sizes = check_shapes(log_p_BK=log_p_BK, token_log_probs_BKL=token_log_probs_BKL)
    mask_BL = shared_answer_mask(answer_mask, passage_mask_BK, num_passages=sizes["K"])
    teacher_BK = mean_answer_log_probs(token_log_probs_BKL.detach(), mask_BL, passage_mask_BK)
    teaching = {
        "teacher_temperature": teacher_temperature,
        "passage_mask_BK": passage_mask_BK,
        "min_spread_nats": min_spread_nats,
    }
    if full_log_prob_B is not None:
        output = loop_loss(log_p_BK, full_log_prob_B, teacher_BK, denominator=denominator, **teaching)
        teacher_BK = usefulness(full_log_prob_B, teacher_BK)
    elif name in _MARGINAL:
        marginal = _MARGINAL[name]
        output = marginal(
            log_p_BK, token_log_probs_BKL, mask_BL, passage_mask_BK=passage_mask_BK, denominator=denominator
        )
    else:
        distil = pdist_loss if name == "pdist" else lsr_loss
        output = distil(log_p_BK, teacher_BK, denominator=denominator, **teaching)
    metrics = {**output.metrics, **agreement_metrics(log_p_BK, teacher_BK, **teaching)}
    if null_scores_B is not None:
        metrics["retrieval_utility_nats"] = retrieval_utility(
            log_p_BK,
            token_log_probs_BKL,
            token_log_probs_BKL[:, -1],
            mask_BL,
            passage_mask_BK=passage_mask_BK,
        )
    return LossOutput(output.loss, metrics)
