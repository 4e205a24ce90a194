"""Checkpoints of a pre-training run and the export of its weights to Hugging Face files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from serving.prompt import END_OF_TEXT, TURN_END
from training.errors import CheckpointError
from training.pretraining.model import MiniModel, ModelConfig
from training.pretraining.optimizer import Optimizers


@dataclass(slots=True)
class Progress:
    """Where a run stands; with the seed it decides every later batch, so no random state need be stored."""

    stage: int = 0
    """Index of the current stage."""
    stage_step: int = 0
    """Steps done in it."""
    step: int = 0
    """Steps done in all."""
    tokens: int = 0
    """Tokens read so far, padding left out."""
    elapsed_s: float = 0.0
    """Seconds of training, over all starts."""
    stage_began_s: float = 0.0
    """`elapsed_s` when the current stage began."""
    plan: tuple[int | None, ...] = ()
    """Steps of each stage; None where a wall-clock limit has not fixed it yet."""


def save_checkpoint(
    path: Path, fingerprint: str, model: MiniModel, optimizers: Optimizers, progress: Progress
) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "progress": {name: getattr(progress, name) for name in Progress.__dataclass_fields__},
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path, fingerprint: str, model: MiniModel, optimizers: Optimizers) -> Progress:
    """Restore a run in place and return where it stands.

    Raises:
        CheckpointError: The checkpoint was written under another configuration.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} was written under configuration {state['fingerprint']}, this run has {fingerprint}: "
            "use the same --config, or another --out"
        )
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    return Progress(**state["progress"])


def hf_config(config: ModelConfig, *, end_id: int, pad_id: int) -> dict:
    """Return the `config.json` of the same model in transformers and vLLM."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": pad_id,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_tokens,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def export_model(model: MiniModel, folder: Path, *, token_ids: dict[str, int]) -> None:
    """Write bf16 weights, `config.json` and `generation_config.json`; the tokenizer is written beside them.

    Args:
        model: The trained model.
        folder: Made when missing.
        token_ids: Ids of the control tokens, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    weights = folder / "model.safetensors"
    save_file(state, str(weights), metadata={"format": "pt"})
    # safetensors writes for the owner alone; a bundle is for whoever clones the repository.
    weights.chmod(0o644)
    end_id, pad_id = token_ids[TURN_END], token_ids[END_OF_TEXT]
    config = hf_config(model.config, end_id=end_id, pad_id=pad_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": [end_id, pad_id], "pad_token_id": pad_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load_exported(folder: Path) -> MiniModel:
    """Return an exported model as our own plain-torch model, in float32."""
    from safetensors.torch import load_file

    raw = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_dim=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        mlp_dim=raw["intermediate_size"],
        max_tokens=raw["max_position_embeddings"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
    )
    model = MiniModel(config)
    model.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    )
    return model
