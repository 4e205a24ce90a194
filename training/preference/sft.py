"""Supervised fine-tuning on answers over passages and recorded search loops, in served prompts.

The loss is on the model's own words. TRL's SFTTrainer trains; tokens and labels are made here, since its own
tokenisation would encode whole conversations, where a document's control tokens become control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback

from agents.search_loop import SearchLimits
from training.errors import ConfigError, DataError
from training.preference.examples import CitedAnswer, SearchTrace
from training.preference.job import JobResult, prepare_folder, run_trainer
from training.preference.policy import Policy, load_policy, max_model_len, peft_config
from training.preference.sequences import MaskedCollator, MaskedSequence
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.trl_names import SFTConfig, SFTTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """A supervised job."""

    policy: PolicySettings
    """The model it starts from."""
    train: TrainSettings
    """How it optimises."""
    max_tokens: int = 2_048
    """Longer sequences are cut to their beginning, left out where that has nothing to learn; 16 or more."""
    limits: SearchLimits = field(default_factory=SearchLimits)
    """Limits of the search loops among the examples; serve with the same."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run; raises ConfigError."""
        if self.max_tokens < 16:
            raise ConfigError(f"max_tokens must be 16 or more, got {self.max_tokens}")


def run(
    config: SftConfig,
    examples: Sequence[CitedAnswer | SearchTrace],
    out: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> JobResult:
    """Train on examples and return where the result is.

    Args:
        config: Settings.
        examples: What to learn, in a fixed order.
        out: The job's folder, new unless `resume`.
        resume: Whether to go on from the newest finished checkpoint; bit-identical on the same machine.
        callbacks: For progress and reports.

    Raises:
        ConfigError: The model cannot be loaded, or its window is shorter than `max_tokens`.
        DataError: No example has anything to learn, or a trace does not replay.
        CheckpointError: The folder holds another run.
    """
    policy = load_policy(config.policy)
    if (window := max_model_len(config.policy.folder)) < config.max_tokens:
        raise ConfigError(f"max_tokens={config.max_tokens:,} is more than the model's window of {window:,}")
    rows, num_left_out = _rows(config, policy, examples)
    checkpoint = prepare_folder(out, config, resume=resume)
    collator = MaskedCollator(int(policy.hf_tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
    trainer = SFTTrainer(
        model=policy.model,
        args=SFTConfig(
            **config.train.arguments(out, config.policy),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.hf_tokenizer,
        data_collator=collator,
        peft_config=peft_config(config.policy.lora, "CAUSAL_LM"),
    )
    result = run_trainer(trainer, out, config.policy.folder, checkpoint, callbacks)
    extra = {"mask_coverage": collator.coverage, "num_left_out": float(num_left_out)}
    return result.with_metrics(extra)


def _rows(
    config: SftConfig, policy: Policy, examples: Sequence[CitedAnswer | SearchTrace]
) -> tuple[list[dict[str, object]], int]:
    rows: list[dict[str, object]] = []
    for example in examples:
        sequence = _sequence(config, policy, example).cut(config.max_tokens)
        if sequence is not None:
            rows.append(
                {
                    "input_ids": list(sequence.token_ids),
                    "labels": sequence.labels,
                    "num_targets": sequence.num_targets,
                }
            )
    if not rows:
        raise DataError(
            f"none of {len(examples)} examples has anything to learn within {config.max_tokens} tokens; "
            "give examples, or raise max_tokens"
        )
    return rows, len(examples) - len(rows)


def _sequence(config: SftConfig, policy: Policy, example: CitedAnswer | SearchTrace) -> MaskedSequence:
    if isinstance(example, SearchTrace):
        # Cutting happens once, afterwards: a replay without room would end before its answer.
        return example.sequence(policy.tokenizer, config.limits, max_tokens=1_000_000)
    return example.sequence(policy.tokenizer)
