"""Optimizers and the learning-rate schedule of pre-training.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) turns the momentum of a matrix into the
nearest orthogonal one; embeddings and norms are always trained by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.errors import ConfigError


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights move."""

    kind: Literal["muon", "adamw"] = "muon"
    """What moves the matrices of the layers."""
    matrix_lr: float = 0.02
    """Peak learning rate of those matrices."""
    embed_lr: float = 0.004
    """Peak learning rate of embeddings and norms."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices."""
    momentum: float = 0.95
    """Muon's momentum."""
    clip: float = 1.0
    """Largest gradient norm."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """wsd: constant, then linear to zero during the last stage. cosine: over all steps."""

    def __post_init__(self) -> None:
        """Refuse values outside their closed sets.

        Raises:
            ConfigError: Naming the field and what it may be.
        """
        if self.kind not in ("muon", "adamw"):
            raise ConfigError(f"optimizer.kind={self.kind!r}: choose muon or adamw")
        if self.schedule not in ("wsd", "cosine"):
            raise ConfigError(f"optimizer.schedule={self.schedule!r}: choose wsd or cosine")


def schedule_factor(config: OptimizerConfig, *, step: int, decay_start: int, total: int) -> float:
    """Return what the peak learning rate is multiplied by at `step` (0 for the first).

    Args:
        config: Names the schedule and the warm-up.
        step: Steps already done.
        decay_start: Step at which wsd starts to fall; ignored by cosine.
        total: Steps of the whole run.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total))))
    if step < decay_start:
        return warmup
    return warmup * max(0.0, (total - step) / max(1, total - decay_start))


def orthogonalize(momentum: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrix, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = momentum.shape[0] > momentum.shape[1]
    x = momentum.T if tall else momentum
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; for the two-dimensional weights inside the layers."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Take matrices only."""
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix by `lr * sqrt(max(1, rows / columns))` along its orthogonalised momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


class Optimizers:
    """The optimizers of one model under one schedule."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        """Sort the model's parameters: matrices of layers, and the rest."""
        self.config = config
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
        rest = [p for name, p in named if p.ndim != 2 or "embed_tokens" in name]
        self.parameters = [p for _, p in named]
        if config.kind == "muon":
            for_matrices: torch.optim.Optimizer = Muon(
                matrices, lr=config.matrix_lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            for_matrices = torch.optim.AdamW(
                matrices, lr=config.matrix_lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
            )
        for_rest = torch.optim.AdamW(
            rest, lr=config.embed_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._members = ((for_matrices, config.matrix_lr), (for_rest, config.embed_lr))

    def step(self, factor: float) -> float:
        """Move the weights at `factor` times the peak rates, clear gradients; returns the gradient norm."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        for optimizer, peak in self._members:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict]:
        """Return the state of both optimizers."""
        return [optimizer.state_dict() for optimizer, _ in self._members]

    def load_state_dict(self, states: list[dict]) -> None:
        """Take up a state that `state_dict` returned."""
        for (optimizer, _), state in zip(self._members, states, strict=True):
            optimizer.load_state_dict(state)
