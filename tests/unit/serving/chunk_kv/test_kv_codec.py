"""Coded KV: within the stated error of what it was, the same bytes each time, and refused where torn."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.chunk_kv.chunk import ChunkKV, CorruptChunk
from serving.chunk_kv.key_rotation import KeyRotation, RotaryAngles
from serving.chunk_kv.kv_codec import (
    BIN_SHARES,
    Bins,
    bin_widths,
    decode_chunk,
    encode_chunk,
    pack_numbers,
    turned_by_place,
    unpack_numbers,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIM = 8
ANGLES = RotaryAngles(tuple(100.0 ** (-pair / 4) for pair in range(4)), True)
PARTLY = RotaryAngles((1.0, 0.1), False)
"""Of a model that turns the first half of a head only, in neighbouring pairs."""


def normal(dtype: torch.dtype = torch.float32, angles: RotaryAngles | None = ANGLES) -> ChunkKV:
    """Return KV as models make it: means by channel, noise, and for keys the position's turn."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(2, 3, 1, 2, HEAD_DIM, generator=generator)
    keys, values = means + torch.randn(2, 3, 50, 2, HEAD_DIM, generator=generator)
    if angles is not None:
        keys = torch.from_numpy(turned_by_place(keys.numpy(), angles, 1))
    return ChunkKV(keys.to(dtype), values.to(dtype), 37, angles)


def assert_within_stated_error(chunk: ChunkKV, coded: bytes) -> None:
    found, widths = decode_chunk(coded), bin_widths(coded)
    limits = torch.finfo(chunk.keys_LTHD.dtype)
    turns = 1.0 if chunk.angles is None else 2**0.5
    for one, other, widths_L, factor in (
        (chunk.keys_LTHD, found.keys_LTHD, widths[0], turns),
        (chunk.values_LTHD, found.values_LTHD, widths[1], 1.0),
    ):
        assert other.dtype == one.dtype
        assert other.shape == one.shape
        before, after = one.double(), other.double()
        # Half a bin; what float32 and the number format round comes to it.
        rounding_L = (limits.eps + 1e-6) * before.abs().amax((1, 2, 3)) + limits.smallest_normal * limits.eps
        bound_L = factor * 0.501 * torch.from_numpy(widths_L.astype(float)) + rounding_L
        assert ((before - after).abs().amax((1, 2, 3)) <= bound_L).all()
    assert (found.start, found.keys_LTHD.shape) == (chunk.start, chunk.keys_LTHD.shape)


@st.composite
def chunks(draw: st.DrawFn) -> ChunkKV:
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    shape = (layers, draw(st.integers(1, 24)), heads, HEAD_DIM)
    dtype, angles = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((None, ANGLES, PARTLY)))
    # Turned halves of the largest number would be beyond it: that is another test's.
    largest = torch.finfo(dtype).max / 2
    tensors = []
    for _ in range(2):
        scale = draw(st.sampled_from((0.0, 1e-42, 1e-6, 1.0, 300.0, largest)))
        content = draw(
            hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32), fill=st.just(np.float32(0.5)))
        )
        tensors.append((torch.from_numpy(content) * scale).to(dtype))
    return ChunkKV(*tensors, draw(st.integers(0, 2**40)), angles)


@settings(max_examples=100, deadline=None)
@given(chunk=chunks(), bins=st.sampled_from(tuple(BIN_SHARES)))
def test_any_finite_chunk_comes_back_within_the_stated_error(chunk: ChunkKV, bins: Bins):
    coded = encode_chunk(chunk, bins)
    assert coded is not None
    assert_within_stated_error(chunk, coded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", BIN_SHARES)
def test_a_chunk_takes_a_fraction_of_its_bytes(dtype: torch.dtype, bins: Bins):
    chunk = normal(dtype)
    coded = encode_chunk(chunk, bins)
    assert coded is not None
    assert_within_stated_error(chunk, coded)
    assert len(coded) < 8 * BIN_SHARES["fine"] / BIN_SHARES[bins] * chunk.keys_LTHD.numel()
    assert decode_chunk(coded).angles is not None


def test_values_are_whole_bins_from_their_channels_mean():
    chunk = normal(angles=None)
    coded = encode_chunk(chunk, "medium")
    assert coded is not None
    values = chunk.values_LTHD.double().numpy()
    width = 0.25 * np.sqrt((values**2).mean((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(bin_widths(coded)[1], width.ravel(), rtol=1e-5)
    mean = np.round(4 * values.mean(1, keepdims=True) / width) / 4 * width
    wanted = mean + np.round((values - mean) / width) * width
    np.testing.assert_allclose(decode_chunk(coded).values_LTHD.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_keys_of_known_angles_take_fewer_bytes():
    chunk = normal()
    known = encode_chunk(chunk, "medium")
    unknown = encode_chunk(ChunkKV(chunk.keys_LTHD, chunk.values_LTHD, chunk.start), "medium")
    assert known is not None
    assert unknown is not None
    assert len(known) < 0.95 * len(unknown)


def test_wrong_angles_cost_bytes_and_no_accuracy():
    chunk = ChunkKV(normal().keys_LTHD, normal().values_LTHD, 37, RotaryAngles((3.0, 2.0, 1.0, 0.5), True))
    coded = encode_chunk(chunk, "fine")
    assert coded is not None
    assert_within_stated_error(chunk, coded)


def test_a_channel_far_larger_than_the_rest_does_not_coarsen_them():
    keys = normal(angles=None).keys_LTHD
    with_outlier = keys.clone()
    with_outlier[..., 0, 3] += 2_000.0
    plain, coded = (encode_chunk(ChunkKV(one, keys, 0), "fine") for one in (keys, with_outlier))
    assert plain is not None
    assert coded is not None
    assert (bin_widths(coded)[0] < 8 * bin_widths(plain)[0]).all()
    assert_within_stated_error(ChunkKV(with_outlier, keys, 0), coded)


def test_the_same_chunk_gives_the_same_bytes():
    assert encode_chunk(normal(), "fine") == encode_chunk(normal(), "fine")


@pytest.mark.parametrize("largest", [0, 1, 127, 128, 255, 32_000])
def test_packed_numbers_come_back(largest: int):
    numbers = np.array([[0, largest, -largest], [-1, 1, -(largest // 2)]])
    np.testing.assert_array_equal(unpack_numbers(pack_numbers(numbers), (2, 3)), numbers)
    with pytest.raises(CorruptChunk, match="shape"):
        unpack_numbers(pack_numbers(numbers), (2, 4))


def test_one_large_number_does_not_double_the_bytes_of_the_rest():
    numbers = np.random.default_rng(0).integers(-4, 5, 20_000)
    alone = len(pack_numbers(numbers))
    numbers[7] = 5_000
    assert len(pack_numbers(numbers)) < 1.1 * alone


def test_zeros_stay_zeros():
    zeros = torch.zeros(2, 5, 1, HEAD_DIM)
    coded = encode_chunk(ChunkKV(zeros, zeros, 0, ANGLES), "coarse")
    assert coded is not None
    assert torch.equal(decode_chunk(coded).keys_LTHD, zeros)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["keys_LTHD", "values_LTHD"])
def test_kv_that_is_not_finite_has_no_coded_form(value: float, part: str):
    chunk = normal()
    getattr(chunk, part)[1, 7, 0, 2] = value
    assert encode_chunk(chunk, "fine") is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 0, 1, HEAD_DIM),
        torch.zeros(2, 4, 1, HEAD_DIM, dtype=torch.float64),
        # Turned by an eighth, such pairs are beyond float32.
        torch.full((1, 4, 1, HEAD_DIM), torch.finfo(torch.float32).max),
    ],
)
def test_other_kv_has_no_coded_form(tensor: torch.Tensor):
    assert encode_chunk(ChunkKV(tensor, tensor, 0, ANGLES), "fine") is None


def test_the_largest_numbers_stay_finite():
    for dtype in DTYPES:
        largest = torch.full((1, 3, 1, HEAD_DIM), torch.finfo(dtype).max, dtype=dtype)
        coded = encode_chunk(ChunkKV(largest, -largest, 0), "coarse")
        assert coded is not None
        assert decode_chunk(coded).keys_LTHD.isfinite().all()
        assert decode_chunk(coded).values_LTHD.isfinite().all()


def test_bytes_that_are_cut_short_or_go_on_are_refused():
    coded = encode_chunk(normal(), "medium")
    assert coded is not None
    for length in (*range(0, 120), *range(120, len(coded), 97)):
        with pytest.raises(CorruptChunk):
            decode_chunk(coded[:length])
    with pytest.raises(CorruptChunk, match="bytes follow"):
        decode_chunk(coded + b"x")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_give_a_chunk_but_nothing_else(data: st.DataObject):
    coded = encode_chunk(normal(), "coarse")
    assert coded is not None
    changed = bytearray(coded)
    place = data.draw(st.one_of(st.integers(0, 80), st.integers(0, len(coded) - 1)))
    changed[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptChunk):
        assert isinstance(decode_chunk(bytes(changed)), ChunkKV)


@pytest.mark.parametrize("is_neox_style", [True, False])
def test_angles_are_those_between_neighbouring_positions(is_neox_style: bool):
    radians = torch.tensor([1.0, 0.3, 1e-3, 1e-6], dtype=torch.float64)
    turns = torch.outer(torch.arange(512.0, dtype=torch.float64), radians)
    rotate = KeyRotation(torch.cat((turns.cos(), turns.sin()), 1), is_neox_style=is_neox_style)
    assert rotate.angles.is_neox_style == is_neox_style
    assert rotate.angles.radians == pytest.approx(radians.tolist(), rel=1e-6)
    keys = torch.randn(2, 300, 1, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    turned = turned_by_place(keys.numpy(), rotate.angles, 1)
    for place in (0, 1, 299):
        wanted = rotate(keys[:, place], place).numpy()
        np.testing.assert_allclose(turned[:, place], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(turned_by_place(turned, rotate.angles, -1), keys, rtol=0, atol=1e-5)
