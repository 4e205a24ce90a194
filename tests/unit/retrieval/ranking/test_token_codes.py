"""Codes decode to about what was encoded; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import IndexUnavailable
from retrieval.ranking.token_codes import bytes_per_token, decode, decode_all, encode, num_tokens

HEADER = 4
COSINES = {"sign": 0.75, "int4": 0.985, "int8": 0.9999}


def unit_rows(num: int, dim: int, seed: int = 0) -> np.ndarray:
    rows_TD = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return rows_TD / np.linalg.norm(rows_TD, axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(
    codec=st.sampled_from(["sign", "int4", "int8"]),
    num=st.integers(0, 40),
    dim=st.integers(64, 200),
    seed=st.integers(0, 9),
)
def test_decoded_tokens_point_where_the_encoded_did(codec, num, dim, seed) -> None:
    tokens_TD = unit_rows(num, dim, seed)
    codes = encode(tokens_TD, codec)
    assert len(codes) == HEADER + num * bytes_per_token(codec, dim)
    assert num_tokens(codes) == num
    decoded_TD = decode(codes, codec, dim)
    assert decoded_TD.dtype == np.float32
    assert decoded_TD.shape == (num, dim)
    if num:
        norms_T = np.linalg.norm(decoded_TD, axis=1)
        assert (np.sum(tokens_TD * decoded_TD, axis=1) / norms_T).mean() > COSINES[codec]


def test_bytes_at_384_dimensions() -> None:
    assert [bytes_per_token(codec, 384) for codec in ("none", "sign", "int4", "int8")] == [0, 48, 192, 386]


def test_int8_of_a_zero_vector_is_zero() -> None:
    assert not decode(encode(np.zeros((2, 8), np.float32), "int8"), "int8", 8).any()


@pytest.mark.parametrize("codec", ["sign", "int4", "int8"])
def test_texts_decode_together_as_one_by_one(codec) -> None:
    texts = [unit_rows(num, 96, num) for num in (3, 0, 17, 1)]
    codes = [encode(tokens_TD, codec) for tokens_TD in texts]
    together_TD, counts = decode_all(codes, codec, 96)
    assert counts.tolist() == [3, 0, 17, 1]
    assert np.array_equal(together_TD, np.concatenate([decode(code, codec, 96) for code in codes]))


@pytest.mark.parametrize(
    "codes",
    [
        b"",
        b"\x01",
        encode(unit_rows(3, 96), "int4"),
        encode(unit_rows(3, 64), "int8"),
        encode(unit_rows(3, 96), "int8")[:-1],
    ],
)
def test_other_bytes_are_refused(codes) -> None:
    with pytest.raises(IndexUnavailable, match="build it anew"):
        decode(codes, "int8", 96)


def test_none_is_no_codec_and_a_text_has_a_bound() -> None:
    with pytest.raises(ValueError, match="sign, int4 or int8"):
        encode(unit_rows(1, 8), "none")
    with pytest.raises(ValueError, match="65,535"):
        encode(np.zeros((65_536, 1), np.float32), "sign")
