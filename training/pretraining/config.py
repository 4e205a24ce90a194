"""Configuration of a pre-training run: one frozen dataclass tree, read from TOML, unknown keys refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from training.errors import ConfigError
from training.pretraining.mixture import StageConfig
from training.pretraining.model import ModelConfig
from training.pretraining.optimizer import OptimizerConfig
from training.toml_config import fingerprint, load_toml


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Everything that decides the weights, and nothing else."""

    stages: tuple[StageConfig, ...]
    """Practised in order; under wsd the learning rate falls during the last one."""
    seed: int = 20261121
    """Of the weights, the tokenizer's sample and every batch."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Shape of the model."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How weights move."""
    text_weight: float = 0.3
    """Weight of the loss on running text beside the loss on answers."""
    max_books: int = 40
    """Public-domain books read beside the textbooks."""
    tokenizer_chars: int = 30_000_000
    """Characters the tokenizer is learnt from."""

    def __post_init__(self) -> None:
        """Refuse runs that cannot be planned.

        Raises:
            ConfigError: No stage, shares that do not add up, or rows longer than the context.
        """
        if not self.stages:
            raise ConfigError("stages is empty: name at least one [[stages]] table")
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f"the shares of the stages add up to {total:.3f}: they must add up to 1")
        longest = max(stage.row_tokens for stage in self.stages)
        if longest > self.model.max_tokens:
            raise ConfigError(f"row_tokens={longest} is above model.max_tokens={self.model.max_tokens}")

    @property
    def fingerprint(self) -> str:
        """Return a short hash of every field, stored with each checkpoint."""
        return fingerprint(self)

    @classmethod
    def from_toml(cls, path: Path) -> PretrainConfig:
        """Return the configuration of a file.

        Raises:
            ConfigError: The file is missing or not TOML, or names an unknown key.
        """
        return load_toml(cls, path)
