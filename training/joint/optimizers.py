"""The optimizers of the two towers under one schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training.errors import ConfigError, NumericsError
from training.joint.config import OptimConfig
from training.types import TrainingQuestion


def rate_factor(config: OptimConfig, step: int) -> float:
    """Return what the peak rates are multiplied by at a step (0 for the first)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class TowerOptimizer:
    """Moves the trained weights of one tower."""

    def __init__(self, name: str, tower: nn.Module, peak_lr: float, config: OptimConfig) -> None:
        """Sort the trained weights: matrices are decayed, the rest is not.

        Args:
            name: What messages and metrics call the tower.
            tower: Its parameters that require gradients are trained.
            peak_lr: Rate at the top of the schedule.
            config: Kind, decay, clipping and schedule.

        Raises:
            ConfigError: The tower has no trained weight, or bitsandbytes is not installed.
        """
        self.name, self._peak_lr, self._config = name, peak_lr, config
        self.parameters = [weight for weight in tower.parameters() if weight.requires_grad]
        if not self.parameters:
            raise ConfigError(f"the {name} has no trained weights; freeze it in the configuration instead")
        matrices = [weight for weight in self.parameters if weight.ndim >= 2]
        rest = [weight for weight in self.parameters if weight.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}]
        if rest:
            groups.append({"params": rest, "weight_decay": 0.0})
        self.optimizer = _make(config, groups, peak_lr)

    def clip(self, questions: Sequence[TrainingQuestion]) -> float:
        """Scale gradients to the largest norm and return their norm before.

        Args:
            questions: This rank's questions of the step, which a message names.

        Raises:
            NumericsError: The norm is not finite; nothing has moved.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self._config.clip)
        full_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(full_norm):
            self.optimizer.zero_grad(set_to_none=True)
            names = ", ".join(repr(question.question_id) for question in questions[:5])
            raise NumericsError(
                f"the gradient of the {self.name} is {full_norm}; no weight was moved. Lower the learning "
                f"rates, or look at the questions of this step, among them {names}"
            )
        return full_norm

    def move(self, step: int) -> None:
        """Move the weights at the rate of a step and clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak_lr * rate_factor(self._config, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _make(config: OptimConfig, groups: Iterable[dict], lr: float) -> torch.optim.Optimizer:
    betas = (0.9, 0.999)
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    if config.kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=lr)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("optim.kind='adamw_8bit' needs bitsandbytes: pip install bitsandbytes") from error
    return AdamW8bit(groups, lr=lr, betas=betas)
