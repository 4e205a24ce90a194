"""A generator with random weights and more layers than `graft-mini`, for figures of speed alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.training_models import READER

NUM_LAYERS, HIDDEN_DIM, HEAD_DIM = 16, 512, 64


def random_generator(folder: Path) -> Path:
    """Save a 55-million-parameter Qwen3 of 16 layers with `graft-mini`'s tokenizer, and return its folder.

    Args:
        folder: Where it goes; left as it is when it is there.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = AutoConfig.from_pretrained(str(READER))
        config.num_hidden_layers, config.hidden_size, config.head_dim = NUM_LAYERS, HIDDEN_DIM, HEAD_DIM
        config.intermediate_size = 3 * HIDDEN_DIM
        config.layer_types = ["full_attention"] * NUM_LAYERS
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(READER / name, folder / name)
    return folder
