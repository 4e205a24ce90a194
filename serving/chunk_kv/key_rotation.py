"""Moves keys to another position: rotary embeddings of a position are rotations, which add up.

A key rotated for position p is made one for position p + d by rotating it by d more. That holds where the
angle is a multiple of the position and lengths are kept: not for YaRN, which also scales, and not for
embeddings whose frequencies depend on the length of the prompt.

Source: Su et al. 2021, RoFormer, equation 15; CacheBlend (Yao et al. 2025), appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RotaryAngles:
    """How far each pair of a key's values turns from one position to the next."""

    radians: tuple[float, ...]
    """One for each pair, rotary_dim / 2 of them."""
    is_neox_style: bool
    """Whether pairs are (i, i + rotary_dim / 2) or neighbours (2 i, 2 i + 1)."""


class KeyRotation:
    """Rotates keys by a number of positions.

    Args:
        cos_sin_PR: float32[num_positions, rotary_dim], the cosines of each position's angles, then the sines.
        is_neox_style: Whether pairs are (i, i + rotary_dim / 2) or neighbours (2 i, 2 i + 1).
    """

    def __init__(self, cos_sin_PR: torch.Tensor, *, is_neox_style: bool) -> None:
        self._cos_PH, self._sin_PH = cos_sin_PR.float().chunk(2, dim=-1)
        self._is_neox_style = is_neox_style

    @property
    def angles(self) -> RotaryAngles:
        """Return the angles between neighbouring positions, as exactly as float32 tables tell."""
        radians_H = torch.atan2(self._sin_PH[1], self._cos_PH[1])
        return RotaryAngles(tuple(radians_H.tolist()), self._is_neox_style)

    def __call__(self, keys: torch.Tensor, delta: int) -> torch.Tensor:
        """Return keys moved by `delta` positions, which may be negative; computed in float32.

        Args:
            keys: Any float[.., head_dim]; only the first rotary_dim values turn.
            delta: Less than num_positions either way.
        """
        if delta == 0:
            return keys
        cos_H, sin_H = self._cos_PH[abs(delta)], self._sin_PH[abs(delta)]
        sin_H = sin_H if delta > 0 else -sin_H
        rotary_dim = 2 * len(cos_H)
        turning = keys[..., :rotary_dim].float()
        if self._is_neox_style:
            first, second = turning.chunk(2, dim=-1)
            turned = torch.cat((first * cos_H - second * sin_H, second * cos_H + first * sin_H), dim=-1)
        else:
            first, second = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack((first * cos_H - second * sin_H, second * cos_H + first * sin_H), dim=-1)
            turned = turned.flatten(-2)
        return torch.cat((turned.to(keys.dtype), keys[..., rotary_dim:]), dim=-1)
