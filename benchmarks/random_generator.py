"""Generators with random weights, for figures of speed alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.training_models import READER
from serving.prompt import CONTROL_TOKENS


def random_generator(folder: Path, *, num_layers: int, hidden_dim: int) -> Path:
    """Save a Qwen3 with `graft-mini`'s tokenizer whose greedy text never ends by itself; return its folder.

    Control tokens have no embedding, so that with tied weights their logit is 0 and others are likelier.

    Args:
        folder: Where it goes; left as it is when it is there.
        num_layers: 1 or more.
        hidden_dim: A multiple of 64. 512 and 16 layers make 55 million parameters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = AutoConfig.from_pretrained(str(READER))
        config.num_hidden_layers, config.hidden_size = num_layers, hidden_dim
        config.head_dim, config.intermediate_size = hidden_dim // 8, 3 * hidden_dim
        config.layer_types = ["full_attention"] * num_layers
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_input_embeddings().weight[: len(CONTROL_TOKENS)] = 0.0
        model.save_pretrained(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(READER / name, folder / name)
    return folder
