"""The model under training with both of its tokenizers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from serving.errors import ModelUnusable
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError
from training.joint.config import LoraConfig
from training.preference.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class Policy:
    """What a trainer gets."""

    model: PreTrainedModel
    """The weights; TRL adds the adapter."""
    tokenizer: ModelTokenizer
    """Encodes prompts exactly as serving does; all token ids of a job come from it."""
    hf_tokenizer: PreTrainedTokenizerBase
    """What TRL wants to see; it pads and names ids, and encodes nothing."""


def open_tokenizer(folder: Path) -> ModelTokenizer:
    """Return the tokenizer that serving would use for a model.

    Raises:
        ConfigError: There is none, or it is no ChatML tokenizer.
    """
    try:
        return ModelTokenizer(folder / "tokenizer.json")
    except ModelUnusable as error:
        raise ConfigError(f"policy.folder={folder}: {error}") from error


def load_policy(settings: PolicySettings) -> Policy:
    """Return a model from its folder.

    Raises:
        ConfigError: The folder holds no model, or its tokenizer's end token is not the one that ends turns.
    """
    tokenizer = open_tokenizer(settings.folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(settings.folder, dtype=getattr(torch, settings.dtype))
        hf_tokenizer = AutoTokenizer.from_pretrained(settings.folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.folder={settings.folder} cannot be loaded: {error}") from error
    if hf_tokenizer.eos_token_id != tokenizer.turn_end_id:
        raise ConfigError(
            f"policy.folder={settings.folder}: eos_token is {hf_tokenizer.eos_token!r}, but turns end with "
            f"id {tokenizer.turn_end_id}; set eos_token in tokenizer_config.json"
        )
    return Policy(model, tokenizer, hf_tokenizer)


def peft_config(lora: LoraConfig | None, task: str) -> peft.LoraConfig | None:
    """Return peft's form of the adapter settings, None to train all weights.

    Args:
        lora: Ours.
        task: peft's name of the task, `CAUSAL_LM` or `SEQ_CLS`.
    """
    if lora is None:
        return None
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        target_modules=list(lora.targets) or "all-linear",
        task_type=task,
    )


def max_model_len(folder: Path) -> int:
    """Return the context window of a model folder in tokens."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["max_position_embeddings"])
