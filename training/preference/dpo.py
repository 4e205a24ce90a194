"""Direct preference optimisation over pairs from feedback and traces.

Loss: -log sigmoid(beta * ((log pi/ref)(chosen) - (log pi/ref)(rejected))), log-probabilities summed over the
tokens the model wrote. Source: Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290), equation 7; TRL's
DPOTrainer computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from agents.search_loop import SearchLimits
from training.errors import ConfigError
from training.preference.job import JobResult, prepare_folder, run_trainer
from training.preference.pairs import PreferencePair
from training.preference.policy import load_policy, peft_config
from training.preference.preference_rows import PairCollator, preference_rows
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.trl_names import DPOConfig, DPOTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoConfig:
    """A preference job."""

    policy: PolicySettings
    """The model it starts from, which is also the reference."""
    train: TrainSettings
    """How it optimises."""
    beta: float = 0.1
    """How dear it is to leave the reference, above 0."""
    max_tokens: int = 2_048
    """Longer pairs are left out, never cut."""
    limits: SearchLimits = field(default_factory=SearchLimits)
    """Limits of the search loops among the pairs; serve with the same."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run; raises ConfigError."""
        if not self.beta > 0:
            raise ConfigError(f"beta must be above 0, got {self.beta}")


class _PairTrainer(DPOTrainer):
    """TRL's trainer over rows that are token ids already, with masks of their own."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask"]


def run(
    config: DpoConfig,
    pairs: Sequence[PreferencePair],
    out: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> JobResult:
    """Train on pairs and return where the result is; arguments and errors as `sft.run`."""
    policy = load_policy(config.policy)
    rows, num_left_out = preference_rows(pairs, policy.tokenizer, config.limits, config.max_tokens)
    checkpoint = prepare_folder(out, config, resume=resume)
    collator = PairCollator(int(policy.hf_tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
    trainer = _PairTrainer(
        model=policy.model,
        args=DPOConfig(**config.train.arguments(out, config.policy), beta=config.beta, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.hf_tokenizer,
        data_collator=collator,
        peft_config=peft_config(config.policy.lora, "CAUSAL_LM"),
    )
    result = run_trainer(trainer, out, config.policy.folder, checkpoint, callbacks)
    return result.with_metrics({"mask_coverage": collator.coverage, "num_left_out": float(num_left_out)})
