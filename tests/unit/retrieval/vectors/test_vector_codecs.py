"""Every codec keeps its stated error, and what is no vector is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.vectors import codecs

CODECS = ("float32", "float16", "int8", "binary")


def unit_rows(num_rows: int, dim: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((num_rows, dim)) * np.exp(spread * rng.standard_normal(dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dim", [1, 7, 64, 384])
def test_a_row_takes_the_stated_bytes_and_decodes_to_unit_length(codec, dim):
    vectors = unit_rows(33, dim, seed=dim)
    codes = codecs.encode(vectors, codec)
    assert codes.shape == (33, codecs.row_bytes(codec, dim))
    assert codes.dtype == np.uint8
    decoded = codecs.decode(b"".join(row.tobytes() for row in codes), codec, dim)
    assert decoded.dtype == np.float32
    assert np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
    assert np.array_equal(decoded, codecs.decode(codes, codec, dim))


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(1, 400), seed=st.integers(0, 2**16), spread=st.floats(0, 3))
def test_decoding_stays_within_the_documented_error(dim, seed, spread):
    vectors = unit_rows(5, dim, seed, spread).astype(np.float64)

    def cosines(codec):
        decoded = codecs.decode(codecs.encode(vectors, codec), codec, dim).astype(np.float64)
        return (vectors * decoded).sum(axis=1) / np.linalg.norm(decoded, axis=1)

    assert np.array_equal(
        codecs.decode(codecs.encode(vectors, "float32"), "float32", dim), vectors.astype(np.float32)
    )
    assert (cosines("float16") >= 1 - 2e-7 - 1e-9).all()
    error = np.sqrt(dim) * np.abs(vectors).max(axis=1) / 254
    bound = np.sqrt(np.clip(1 - error**2, 0, 1))
    assert (cosines("int8") >= bound - 1e-6).all()
    assert np.allclose(cosines("binary"), np.abs(vectors).sum(axis=1) / np.sqrt(dim), atol=1e-6)


def test_int8_keeps_the_order_of_near_neighbours():
    vectors = unit_rows(2000, 384, seed=1)
    queries = codecs.unit(vectors[:20] + 0.03 * unit_rows(20, 384, seed=2), 384)
    decoded = codecs.decode(codecs.encode(vectors, "int8"), "int8", 384)
    best, found = (queries @ vectors.T).argmax(1), (queries @ decoded.T).argmax(1)
    assert np.array_equal(best, found)


def test_truncation_keeps_a_prefix_at_unit_length():
    vectors = unit_rows(9, 64, seed=3)
    kept = codecs.unit(vectors, 64, 16)
    prefix = vectors[:, :16] / np.linalg.norm(vectors[:, :16], axis=1, keepdims=True)
    assert kept.shape == (9, 16)
    assert np.allclose(kept, prefix, atol=1e-6)
    assert kept.flags.c_contiguous


def test_unit_vectors_come_back_bit_for_bit():
    vectors = codecs.unit(unit_rows(50, 384, seed=4) * 7, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(codecs.unit(vectors, 384), vectors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_the_row(bad):
    vectors = unit_rows(4, 8, seed=5)
    vectors[2, 3] = bad
    with pytest.raises(ValueError, match="vector 2 holds NaN or infinity"):
        codecs.unit(vectors, 8)


def test_wrong_dimension_zero_length_and_torn_codes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 8\), the index holds vectors of 9"):
        codecs.unit(unit_rows(4, 8, seed=6), 9)
    with pytest.raises(ValueError, match="shape"):
        codecs.checked(np.zeros(8, dtype=np.float32), 8)
    with pytest.raises(ValueError, match="length zero"):
        codecs.unit(np.zeros((1, 8), dtype=np.float32), 8)
    with pytest.raises(ValueError, match="from 0"):
        codecs.unit(unit_rows(1, 8, seed=6), 8, 9)
    with pytest.raises(ValueError, match="no whole number of int8 vectors"):
        codecs.decode(b"123456789abcd", "int8", 8)
    with pytest.raises(ValueError, match="unknown vector codec"):
        codecs.row_bytes("pq", 8)


@pytest.mark.parametrize("codec", CODECS)
def test_no_rows_encode_and_decode_to_no_rows(codec):
    codes = codecs.encode(np.empty((0, 12), dtype=np.float32), codec)
    assert codes.shape[0] == 0
    assert codecs.decode(b"", codec, 12).shape == (0, 12)
