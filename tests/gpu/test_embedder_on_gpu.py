"""The packaged embedder in float16 on a GPU against float32 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

TEXTS = [
    f"Valve {number} of the pump was replaced " + "and tested again " * (number % 40) for number in range(300)
]


@pytest.fixture(scope="module")
def on_gpu() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(RetrievalConfig(embed_device="cuda"))


@pytest.fixture(scope="module")
def on_cpu() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(RetrievalConfig(embed_device="cpu", embed_backend="torch"))


async def test_auto_takes_the_gpu_in_float16_under_a_hash_of_its_own(on_gpu, on_cpu):
    auto = await SentenceTransformerEmbedder(RetrievalConfig()).info()
    ours, theirs = await on_gpu.info(), await on_cpu.info()
    assert (auto.backend, ours.backend, theirs.backend) == ("torch-fp16", "torch-fp16", "torch-fp32")
    assert auto.model_hash == ours.model_hash != theirs.model_hash
    assert ours.dim == theirs.dim


async def test_vectors_are_those_of_float32_but_for_rounding(on_gpu, on_cpu):
    ours_ND, theirs_ND = await on_gpu.embed_passages(TEXTS), await on_cpu.embed_passages(TEXTS)
    assert ours_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours_ND, axis=1), 1.0, atol=1e-5)
    assert (ours_ND * theirs_ND).sum(axis=1).min() >= 0.999


async def test_token_vectors_are_those_of_float32_but_for_rounding(on_gpu, on_cpu):
    _, ours = await on_gpu.embed_queries_with_tokens(TEXTS[:8])
    _, theirs = await on_cpu.embed_queries_with_tokens(TEXTS[:8])
    for ours_TD, theirs_TD in zip(ours, theirs, strict=True):
        assert ours_TD.shape == theirs_TD.shape
        assert (ours_TD * theirs_TD).sum(axis=1).min() >= 0.995


async def test_a_vector_hardly_depends_on_its_neighbours_in_the_batch(on_gpu):
    together_ND = await on_gpu.embed_passages(TEXTS[:64])
    alone_ND = np.concatenate([await on_gpu.embed_passages([text]) for text in TEXTS[:8]])
    assert (together_ND[:8] * alone_ND).sum(axis=1).min() >= 0.999
