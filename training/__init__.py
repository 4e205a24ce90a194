"""Training: language-model pre-training and reading tasks.

Names are loaded when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.errors import CheckpointError, ConfigError, DataMissingError, TrainingError
    from training.pretrain import Pretrainer
    from training.pretraining.config import PretrainConfig
    from training.pretraining.model import MiniModel, ModelConfig

_HOMES = {
    "CheckpointError": "training.errors",
    "ConfigError": "training.errors",
    "DataMissingError": "training.errors",
    "MiniModel": "training.pretraining.model",
    "ModelConfig": "training.pretraining.model",
    "PretrainConfig": "training.pretraining.config",
    "Pretrainer": "training.pretrain",
    "TrainingError": "training.errors",
}
"""Where each public name lives."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataMissingError",
    "MiniModel",
    "ModelConfig",
    "PretrainConfig",
    "Pretrainer",
    "TrainingError",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
