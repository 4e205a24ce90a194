"""The KV of one chunk.

Shapes: L layers, T tokens, H KV heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from serving.chunk_kv.key_rotation import RotaryAngles


class CorruptChunk(Exception):
    """What was read is not what was written: cut short, changed, or of another chunk."""


@dataclass(frozen=True, slots=True)
class ChunkKV:
    """Keys and values of a chunk's tokens, as the model computed them after some context."""

    keys_LTHD: torch.Tensor
    """Rotated for positions `start`, `start` + 1, ..; in the engine's number format."""
    values_LTHD: torch.Tensor
    """Of the same shape and format."""
    start: int
    """Position of the first token when the keys were computed."""
    angles: RotaryAngles | None = None
    """How the keys turn from one token to the next, which lets them be coded in fewer bytes; None where
    that is not known."""

    def __post_init__(self) -> None:
        if self.keys_LTHD.shape != self.values_LTHD.shape or self.keys_LTHD.dim() != 4:
            raise ValueError(
                f"keys and values must be of one shape [layers, tokens, heads, dim], got "
                f"{tuple(self.keys_LTHD.shape)} and {tuple(self.values_LTHD.shape)}"
            )

    @property
    def num_tokens(self) -> int:
        """Return the length of the chunk."""
        return self.keys_LTHD.shape[1]

    @property
    def num_bytes(self) -> int:
        """Return what the tensors take."""
        return self.keys_LTHD.nbytes + self.values_LTHD.nbytes
