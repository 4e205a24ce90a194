"""Writes a random LoRA adapter of a small model in PEFT's form, large enough to change what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from serving.weights import BUNDLED_FOLDER, tensor_shapes

MODULES = ("q_proj", "v_proj")


def write_adapter(
    folder: Path, seed: int, *, rank: int = 8, model: Path = BUNDLED_FOLDER, hidden_dim: int | None = None
) -> Path:
    """Write an adapter of the attention's queries and values and return its folder.

    Args:
        folder: Where it goes.
        seed: Of its weights.
        rank: Of all matrices.
        model: Folder of the model it is for.
        hidden_dim: What it takes the model's width for; None for what it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(tensor_shapes(model).items()):
        module = name.removesuffix(".weight")
        if module.endswith(MODULES):
            out_dim, in_dim = shape[0], hidden_dim or shape[1]
            a, b = rng.normal(0, 0.2, (rank, in_dim)), rng.normal(0, 0.2, (out_dim, rank))
            weights[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
            weights[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "graft-mini",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
