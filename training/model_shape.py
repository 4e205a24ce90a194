"""The sizes of a transformer from its files, without loading a weight: what estimates are computed from."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.joint.config import LoraConfig

_EMBEDDINGS = ("embed", "lm_head", "position")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of one transformer."""

    num_params: int
    """All weights."""
    num_matmul_params: int
    """Weights that every token is multiplied with: all but embeddings and the head."""
    num_layers: int
    """Blocks."""
    hidden_dim: int
    """Width of the residual stream."""
    mlp_dim: int
    """Width within an MLP."""
    num_mlp_matrices: int
    """2, or 3 where it is gated."""
    vocab_size: int
    """Rows of the embedding."""

    @classmethod
    def of(cls, folder: Path) -> ModelShape:
        """Return the shape of a model folder: transformers, or sentence-transformers around one.

        Raises:
            ConfigError: It holds no transformer configuration.
        """
        for path in (folder / "config.json", *sorted(folder.glob("*/config.json"))):
            if path.is_file():
                config = json.loads(path.read_text(encoding="utf-8"))
                if "hidden_size" in config and "num_hidden_layers" in config:
                    return cls._of(config, _weights(path.parent))
        raise ConfigError(f"'{folder}' holds no config.json of a transformer; its size cannot be told")

    @classmethod
    def _of(cls, config: dict[str, Any], weights: dict[str, int]) -> ModelShape:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        mlp, vocab = int(config.get("intermediate_size", 4 * hidden)), int(config.get("vocab_size", 0))
        num_mlp_matrices = 3 if config.get("hidden_act") in ("silu", "swiglu") else 2
        computed = layers * (4 * hidden * hidden + num_mlp_matrices * hidden * mlp)
        matmul = sum(size for name, size in weights.items() if not any(part in name for part in _EMBEDDINGS))
        return cls(
            num_params=sum(weights.values()) or computed + vocab * hidden,
            num_matmul_params=matmul or computed,
            num_layers=layers,
            hidden_dim=hidden,
            mlp_dim=mlp,
            num_mlp_matrices=num_mlp_matrices,
            vocab_size=vocab,
        )

    def forward_flops(self, num_tokens: float, row_tokens: float) -> float:
        """Return the floating-point operations of a forward pass, without the head.

        Two for each weight and token, and for each layer 4 * hidden * row for the two products of attention
        (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, table 1).

        Args:
            num_tokens: Of all rows.
            row_tokens: Mean length of a row.
        """
        attention = 4.0 * self.num_layers * self.hidden_dim * row_tokens
        return num_tokens * (2.0 * self.num_matmul_params + attention)

    def num_trained(self, lora: LoraConfig | None) -> int:
        """Return the weights that move: all, or those of adapters on all linear layers."""
        if lora is None:
            return self.num_params
        attention = 4 * lora.rank * 2 * self.hidden_dim
        mlp = self.num_mlp_matrices * lora.rank * (self.hidden_dim + self.mlp_dim)
        return self.num_layers * (attention + mlp)

    def activation_elements(self, num_tokens: float, *, is_checkpointed: bool) -> float:
        """Return the numbers kept for the backward pass.

        A block keeps its input, two normalised inputs, queries, keys, values, the attention's result and its
        projection (9 times the width with the second residual), and its MLP's inner values. Attention
        matrices are not kept: the fused kernels compute them again. With checkpointing a block keeps its
        input alone and one block at a time is computed again.
        """
        block = 9 * self.hidden_dim + self.num_mlp_matrices * self.mlp_dim
        if is_checkpointed:
            return num_tokens * (self.num_layers * self.hidden_dim + block)
        return num_tokens * self.num_layers * block


def _weights(folder: Path) -> dict[str, int]:
    """Return the number of elements of each tensor by name, from the headers of safetensors files."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        found |= {name: prod(one["shape"]) for name, one in header.items() if name != "__metadata__"}
    return found
