"""Configuration of a pre-training run: one frozen dataclass tree, read from TOML, unknown keys refused."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.mixture import StageConfig
from training.model import ModelConfig
from training.optimizer import OptimizerConfig


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
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_toml(cls, path: Path) -> PretrainConfig:
        """Return the configuration of a file.

        Raises:
            ConfigError: The file is missing or not TOML, or names an unknown key.
        """
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
        return _build(cls, table, str(path))


def _build(kind: type, table: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise ConfigError(
                f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, f"{where}:{key}")
        elif typing.get_origin(hint) is tuple:
            member = typing.get_args(hint)[0]
            built = (
                _build(typing.cast(type, member), item, f"{where}:{key}")
                if dataclasses.is_dataclass(member)
                else item
                for item in value
            )
            value = tuple(built)
        elif hint is float and isinstance(value, int):
            value = float(value)
        elif (
            isinstance(hint, type)
            and not isinstance(hint, types.GenericAlias)
            and not isinstance(value, hint)
        ):
            raise ConfigError(f"{where}: {key}={value!r} is not of type {hint.__name__}")
        values[key] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
