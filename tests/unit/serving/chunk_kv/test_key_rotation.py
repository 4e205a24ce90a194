"""Moving keys against the definition of rotary embeddings, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving.chunk_kv.key_rotation import KeyRotation

NUM_POSITIONS, ROTARY_DIM, HEAD_DIM = 512, 12, 16


def angles(position: int) -> np.ndarray:
    return position / 10_000.0 ** (np.arange(0, ROTARY_DIM, 2) / ROTARY_DIM)


def rotated(keys: np.ndarray, position: int, *, is_neox_style: bool) -> np.ndarray:
    """Turn each pair of values as one complex number."""
    out = keys.copy()
    half = ROTARY_DIM // 2
    pairs = (
        (slice(0, half), slice(half, ROTARY_DIM))
        if is_neox_style
        else (slice(0, ROTARY_DIM, 2), slice(1, ROTARY_DIM, 2))
    )
    turned = (keys[..., pairs[0]] + 1j * keys[..., pairs[1]]) * np.exp(1j * angles(position))
    out[..., pairs[0]], out[..., pairs[1]] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("is_neox_style", [True, False])
@pytest.mark.parametrize(("start", "end"), [(0, 300), (300, 0), (17, 18), (40, 40)])
def test_a_moved_key_is_the_key_of_that_position(is_neox_style: bool, start: int, end: int):
    table = np.array([np.concatenate((np.cos(angles(p)), np.sin(angles(p)))) for p in range(NUM_POSITIONS)])
    rotate = KeyRotation(torch.from_numpy(table), is_neox_style=is_neox_style)
    keys = np.random.default_rng(0).normal(size=(3, 2, HEAD_DIM))
    before = torch.from_numpy(rotated(keys, start, is_neox_style=is_neox_style)).float()
    wanted = torch.from_numpy(rotated(keys, end, is_neox_style=is_neox_style)).float()
    torch.testing.assert_close(rotate(before, end - start), wanted, rtol=1e-4, atol=1e-5)
    half = rotate(before.bfloat16(), end - start)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, rtol=2e-2, atol=2e-2)
