"""Pooling and normalisation are those of sentence-transformers, bit for near bit."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.embedding.pooling import PoolingMode, pool, token_vectors, unit


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pooling_equals_sentence_transformers(mode: PoolingMode) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    rng = np.random.default_rng(3)
    hidden_NTD = rng.normal(size=(5, 11, 32)).astype(np.float32)
    mask_NT = (np.arange(11) < np.array([11, 1, 4, 7, 2])[:, None]).astype(np.int64)
    features = {
        "token_embeddings": torch.from_numpy(hidden_NTD),
        "attention_mask": torch.from_numpy(mask_NT),
    }
    expected = Normalize()(Pooling(32, pooling_mode=mode)(features))["sentence_embedding"].numpy()
    np.testing.assert_allclose(pool(hidden_NTD, mask_NT, mode), expected, atol=1e-6)


def test_token_vectors_are_the_kept_ones_at_unit_length() -> None:
    hidden_NTD = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    kept_NT = np.array([[False, True, True, False]])
    (tokens_TD,) = token_vectors(hidden_NTD, kept_NT)
    np.testing.assert_allclose(tokens_TD, unit(hidden_NTD[0, 1:3]))
    np.testing.assert_allclose(np.linalg.norm(tokens_TD, axis=1), 1, atol=1e-6)


def test_a_zero_vector_stays_zero() -> None:
    assert not unit(np.zeros((2, 3), np.float32)).any()
