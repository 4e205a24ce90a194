"""Adapters inside a model's own layers, and a copy of the model with them merged."""

from __future__ import annotations

import copy
from typing import TypeVar

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from training.joint.config import LoraConfig

Model = TypeVar("Model", bound=nn.Module)


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put a trainable adapter into a transformers or sentence-transformers model and freeze the rest."""
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets) or "all-linear",
    )
    model.add_adapter(settings)  # pyright: ignore[reportCallIssue]


def merged(model: Model) -> Model:
    """Return the model itself if it has no adapter, else a copy with adapters merged into its layers."""
    if not any(isinstance(part, LoraLayer) for part in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, part in list(plain.named_modules()):
        if isinstance(part, LoraLayer):
            parent_name, _, child = name.rpartition(".")
            part.merge(safe_merge=True)  # pyright: ignore[reportCallIssue]
            setattr(plain.get_submodule(parent_name), child, part.get_base_layer())
    for part in plain.modules():  # transformers would save the adapter alone.
        if getattr(part, "_hf_peft_config_loaded", False):
            part._hf_peft_config_loaded = False  # pyright: ignore[reportArgumentType]
    return plain
