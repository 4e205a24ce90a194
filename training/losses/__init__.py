"""Losses of joint training.

Names are loaded when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.losses.agreement import (
        agreement_metrics,
        entropy_share,
        rank_correlation,
        rows_with_signal,
    )
    from training.losses.answer_likelihood import mean_answer_log_probs, shared_answer_mask
    from training.losses.contrastive import NO_PASSAGE, GradCache, contrastive_loss
    from training.losses.distill import distill_loss
    from training.losses.emdr2 import emdr2_sequence_loss, emdr2_token_loss
    from training.losses.gather import gather_rows
    from training.losses.lm import concat_lm_loss, parallel_lm_loss
    from training.losses.loop import loop_loss, usefulness
    from training.losses.lsr import lsr_loss
    from training.losses.named_loss import RETRIEVER_LOSSES, RetrieverLossName, retriever_loss
    from training.losses.output import LossOutput
    from training.losses.passage_distribution import passage_log_probs
    from training.losses.pdist import pdist_loss
    from training.losses.rag import rag_sequence_loss, rag_token_loss
    from training.losses.temperature import (
        EntropyControlledTemperature,
        FixedTemperature,
        TeacherTemperature,
    )
    from training.losses.tiled_log_probs import NO_LABEL, AnswerLogProbs, answer_log_probs, label_log_probs
    from training.losses.utility import retrieval_utility

_HOMES = {
    "agreement": ("agreement_metrics", "entropy_share", "rank_correlation", "rows_with_signal"),
    "answer_likelihood": ("mean_answer_log_probs", "shared_answer_mask"),
    "tiled_log_probs": ("NO_LABEL", "AnswerLogProbs", "answer_log_probs", "label_log_probs"),
    "contrastive": ("NO_PASSAGE", "GradCache", "contrastive_loss"),
    "distill": ("distill_loss",),
    "emdr2": ("emdr2_sequence_loss", "emdr2_token_loss"),
    "gather": ("gather_rows",),
    "lm": ("concat_lm_loss", "parallel_lm_loss"),
    "loop": ("loop_loss", "usefulness"),
    "lsr": ("lsr_loss",),
    "output": ("LossOutput",),
    "passage_distribution": ("passage_log_probs",),
    "pdist": ("pdist_loss",),
    "rag": ("rag_sequence_loss", "rag_token_loss"),
    "utility": ("retrieval_utility",),
    "named_loss": ("RETRIEVER_LOSSES", "RetrieverLossName", "retriever_loss"),
    "temperature": ("EntropyControlledTemperature", "FixedTemperature", "TeacherTemperature"),
}
"""The file that owns each public name."""
_OWNERS = {name: owner for owner, names in _HOMES.items() for name in names}

__all__ = [
    "NO_LABEL",
    "NO_PASSAGE",
    "RETRIEVER_LOSSES",
    "AnswerLogProbs",
    "EntropyControlledTemperature",
    "FixedTemperature",
    "GradCache",
    "LossOutput",
    "RetrieverLossName",
    "TeacherTemperature",
    "agreement_metrics",
    "answer_log_probs",
    "concat_lm_loss",
    "contrastive_loss",
    "distill_loss",
    "emdr2_sequence_loss",
    "emdr2_token_loss",
    "entropy_share",
    "gather_rows",
    "label_log_probs",
    "loop_loss",
    "lsr_loss",
    "mean_answer_log_probs",
    "parallel_lm_loss",
    "passage_log_probs",
    "pdist_loss",
    "rag_sequence_loss",
    "rag_token_loss",
    "rank_correlation",
    "retrieval_utility",
    "retriever_loss",
    "rows_with_signal",
    "shared_answer_mask",
    "usefulness",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _OWNERS:
        raise AttributeError(f"module 'training.losses' has no attribute {name!r}")
    return getattr(import_module(f"training.losses.{_OWNERS[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
