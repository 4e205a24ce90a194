"""One suite over every `Embedder`: the fake and the real model."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.types import Embedder


@pytest.fixture(scope="module")
def loaded() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(RetrievalConfig(embed_batch_size=4))


@pytest.fixture(
    params=["hash", "sentence_transformers", pytest.param("actor", marks=pytest.mark.integration)]
)
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    if request.param == "hash":
        yield HashEmbedder()
    elif request.param == "sentence_transformers":
        yield request.getfixturevalue("loaded")
    else:
        from retrieval.actor import ActorEmbedder

        retrieval = request.getfixturevalue("actor_retrieval")
        yield ActorEmbedder(retrieval.embedder, RetrievalConfig())


async def test_vectors_are_unit_float32_of_the_stated_dim(embedder: Embedder) -> None:
    dim = (await embedder.info()).dim
    for embed in (embedder.embed_queries, embedder.embed_passages):
        vectors_ND = await embed(["one text", "another text", "a third"])
        assert vectors_ND.dtype == np.float32
        assert vectors_ND.shape == (3, dim)
        np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1.0, atol=1e-5)


async def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    dim = (await embedder.info()).dim
    assert (await embedder.embed_queries([])).shape == (0, dim)
    assert (await embedder.embed_passages([])).shape == (0, dim)


async def test_order_is_kept_whatever_the_lengths(embedder: Embedder) -> None:
    texts = [
        "short",
        "a much longer text about paged attention " * 8,
        "mid length text here",
        "b",
        "c d e f g",
    ]
    together_ND = await embedder.embed_passages(texts)
    for text, vector_D in zip(texts, together_ND, strict=True):
        np.testing.assert_allclose((await embedder.embed_passages([text]))[0], vector_D, atol=2e-5)


async def test_repeated_queries_get_equal_vectors(embedder: Embedder) -> None:
    first_ND = await embedder.embed_queries(["who wrote it", "when", "who wrote it"])
    np.testing.assert_array_equal(first_ND[0], first_ND[2])
    again_ND = await embedder.embed_queries(["when", "who wrote it"])
    np.testing.assert_allclose(again_ND, first_ND[[1, 0]], atol=2e-5)


async def test_related_texts_are_nearer_than_unrelated(embedder: Embedder) -> None:
    query_D = (await embedder.embed_queries(["key value cache memory of attention"]))[0]
    near_D, far_D = await embedder.embed_passages(
        ["the attention cache stores key and value memory", "bread is baked from flour and water in an oven"]
    )
    assert query_D @ near_D > query_D @ far_D + 0.1


async def test_odd_texts_give_finite_vectors(embedder: Embedder) -> None:
    vectors_ND = await embedder.embed_passages(["", " ", "\n", "日本語 😀", "x" * 5000, "word " * 3000])
    assert np.isfinite(vectors_ND).all()


async def test_info_is_stable(embedder: Embedder) -> None:
    info = await embedder.info()
    assert info == await embedder.info()
    assert len(info.model_hash) == 16
    assert info.max_tokens >= 128
