"""What every job on TRL is told: the model, the optimiser, and how far to go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.errors import ConfigError
from training.joint.config import LoraConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The model a job starts from."""

    folder: Path
    """Hugging Face folder of a causal language model with ChatML tokens; serving reads its tokenizer.json."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers the weights are kept in."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of being kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a job optimises; bounds are checked at construction."""

    steps: int
    """Optimiser steps, 1 or more."""
    batch_size: int = 8
    """Examples of one forward pass, 1 or more."""
    accumulation: int = 1
    """Forward passes of one optimiser step, 1 or more."""
    lr: float = 1e-5
    """Peak learning rate, above 0."""
    schedule: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: int = 0
    """Steps over which it rises, 0 to steps."""
    weight_decay: float = 0.0
    """AdamW's, 0 or more."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, above 0."""
    seed: int = 0
    """Order of examples, adapter weights and sampling follow from it."""
    save_every: int = 0
    """Steps between checkpoints; 0 keeps none, so that the job cannot be resumed."""
    log_every: int = 1
    """Steps between records of metrics, 1 or more."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run; raises ConfigError."""
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ConfigError(
                f"train.warmup_steps={self.warmup_steps} must be from 0 to {self.steps} (train.steps)"
            )
        if self.weight_decay < 0 or self.save_every < 0:
            raise ConfigError(
                f"train.weight_decay={self.weight_decay} and train.save_every={self.save_every} "
                "must not be negative"
            )

    def arguments(self, out: Path, policy: PolicySettings) -> dict[str, Any]:
        """Return the keywords all of TRL's configurations share.

        Precision and activation checkpointing are always given: TRL's own defaults are bf16 and checkpointing
        on, on a CPU too.
        """
        return {
            "output_dir": str(out / "checkpoints"),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.lr,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": self.warmup_steps,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
            "data_seed": self.seed,
            "bf16": False,
            "fp16": False,
            "gradient_checkpointing": policy.checkpointing,
            "logging_steps": self.log_every,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps" if self.save_every else "no",
            "save_steps": self.save_every or self.steps,
            "save_total_limit": 2,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
        }
