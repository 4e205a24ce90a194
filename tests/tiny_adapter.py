"""Writes a random LoRA adapter of `graft-mini` in PEFT's form, large enough to change what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN_DIM, NUM_LAYERS = 256, 5
OUT_DIMS = {"q_proj": 256, "v_proj": 128}


def write_adapter(folder: Path, seed: int, *, rank: int = 8, hidden_dim: int = HIDDEN_DIM) -> Path:
    """Write an adapter of the attention's queries and values and return its folder.

    Args:
        folder: Where it goes.
        seed: Of its weights.
        rank: Of all matrices.
        hidden_dim: 256 fits the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in range(NUM_LAYERS):
        for module, out_dim in OUT_DIMS.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = rng.normal(0, 0.2, (rank, hidden_dim)).astype(np.float32)
            weights[f"{name}.lora_B.weight"] = rng.normal(0, 0.2, (out_dim, rank)).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "graft-mini",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(OUT_DIMS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
