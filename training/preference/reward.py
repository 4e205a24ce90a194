"""A reward model: one number for a question with what came of it, higher for chosen outcomes.

Loss: -log sigmoid(r(chosen) - r(rejected)), the Bradley-Terry model as in Ouyang et al. 2022
(https://arxiv.org/abs/2203.02155), equation 1; TRL's RewardTrainer computes it. Passages are read by the
model here, not masked: a score of an answer depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback
from transformers.utils import logging as transformers_logging

from agents.search_loop import SearchLimits
from training.errors import ConfigError
from training.preference.examples import CitedAnswer, SearchTrace
from training.preference.job import JobResult, prepare_folder, run_trainer
from training.preference.pairs import PreferencePair
from training.preference.policy import load_policy, open_tokenizer, peft_config
from training.preference.preference_rows import continuation, preference_rows
from training.preference.sequences import pad_right
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.trl_names import RewardConfig, RewardTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig:
    """A job that trains a reward model."""

    policy: PolicySettings
    """The language model it starts from; its head is replaced by one number."""
    train: TrainSettings
    """How it optimises."""
    max_tokens: int = 2_048
    """Longer pairs are left out, never cut."""
    center: float = 0.01
    """Weight of the squared mean of a pair's scores, which keeps them around zero, 0 or more."""
    limits: SearchLimits = field(default_factory=SearchLimits)
    """Limits of the search loops among the pairs."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run; raises ConfigError."""
        if self.center < 0:
            raise ConfigError(f"center must be 0 or more, got {self.center}")


def run(
    config: RewardModelConfig,
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
    torch.manual_seed(config.train.seed)  # the new head is random
    trainer = RewardTrainer(
        model=_scorer(config.policy.folder, getattr(torch, config.policy.dtype)),
        args=RewardConfig(
            **config.train.arguments(out, config.policy),
            max_length=None,
            center_rewards_coefficient=config.center or None,
        ),
        train_dataset=Dataset.from_list(
            [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows]
        ),
        processing_class=policy.hf_tokenizer,
        peft_config=peft_config(config.policy.lora, "SEQ_CLS"),
    )
    result = run_trainer(trainer, out, config.policy.folder, checkpoint, callbacks)
    return result.with_metrics({"num_left_out": float(num_left_out)})


class RewardModel:
    """Scores outcomes with a trained reward model; usable as a reward of GRPO."""

    def __init__(self, folder: Path, limits: SearchLimits | None = None) -> None:
        """Load a result of `run` that trained all weights.

        Args:
            folder: Its model folder.
            limits: Limits of the search loops to be scored.

        Raises:
            ConfigError: The folder cannot be loaded.
        """
        self._tokenizer = open_tokenizer(folder)
        self._limits = limits or SearchLimits()
        self._model = _scorer(folder, torch.float32).eval()
        self._pad_id = int(self._model.config.pad_token_id)

    @torch.no_grad()
    def scores(self, examples: Sequence[CitedAnswer | SearchTrace]) -> list[float]:
        """Return one score for each outcome, higher is better."""
        parts = [continuation(example, self._tokenizer, self._limits) for example in examples]
        rows = [[*part.prompt_ids, *part.token_ids] for part in parts]
        ids_BT = pad_right(rows, self._pad_id)
        attention_BT = pad_right([[1] * len(row) for row in rows], 0)
        return self._model(input_ids=ids_BT, attention_mask=attention_BT).logits[:, 0].tolist()


def _scorer(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the sequence classifier of a folder; a language model's head gives way to a new one."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it reports the missing head, which is the point
    try:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a reward model: {error}") from error
    finally:
        transformers_logging.set_verbosity(level)
