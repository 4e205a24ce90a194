"""Shapes, dtypes and settings that losses check before they compute.

Shape letters of the package: B questions, K passages of a question, L answer tokens, T tokens of a row, D
width, V vocabulary, N tokens or rows of any origin, P passages of a contrastive row, R ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.errors import ConfigError


def check_shapes(**tensors: Tensor | None) -> dict[str, int]:
    """Return the size behind each shape letter.

    Args:
        tensors: Tensors under names that end in `_` and one letter a dimension, such as `scores_BK`; a letter
            has one size in all of them. Names with `mask` in them must be boolean. `None` is passed over.

    Raises:
        ValueError: A tensor has another rank or size than its name and the others say, or a mask is not
            boolean.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        letters, shape = name.rpartition("_")[2], tuple(tensor.shape)
        if len(letters) != len(shape):
            raise ValueError(
                f"{name} has shape {shape}: pass {len(letters)} dimensions, {', '.join(letters)}"
            )
        if "mask" in name and tensor.dtype != torch.bool:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}: pass a boolean tensor, true where a value counts"
            )
        for letter, size in zip(letters, shape, strict=True):
            known, where = sizes.setdefault(letter, (size, name))
            if known != size:
                raise ValueError(
                    f"{name} has shape {shape}, so {letter}={size}, but {where} has {letter}={known}"
                )
    return {letter: size for letter, (size, _) in sizes.items()}


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a finite number above zero.

    Raises:
        ConfigError: It is not.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value} must be a finite number above 0")


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is when it is float64: what losses compute in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
