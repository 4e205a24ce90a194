"""One suite over every `Embedder`: the fake, the real model by each backend, and the pool of actors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.ranking import token_codes
from retrieval.types import Embedder


@pytest.fixture(scope="module")
def embed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedders")


@pytest.fixture(scope="module")
def torch_embedder() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(RetrievalConfig(embed_backend="torch", embed_batch_size=4))


@pytest.fixture(scope="module")
def onnx_embedder(embed_folder: Path) -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(
        RetrievalConfig(embed_backend="onnx-int8", embed_folder=str(embed_folder), embed_batch_tokens=64)
    )


@pytest.fixture(scope="module")
def embedder_handles(ray_session: None, embed_folder: Path) -> Iterator[list[object]]:
    """Two replicas, which share the conversion that `onnx_embedder` made or makes."""
    import ray

    from retrieval.actor import actor_env
    from retrieval.embedding.actor import start_embedders

    config = RetrievalConfig(embed_folder=str(embed_folder), num_embedders=2)
    options = {
        "namespace": "embedder-contract",
        "num_cpus": 1,
        "runtime_env": {"env_vars": actor_env(config, num_threads=1)},
    }
    handles = start_embedders(config, options)
    yield handles
    for handle in handles:
        ray.kill(handle, no_restart=True)


@pytest.fixture(params=["hash", "torch", "onnx", pytest.param("actors", marks=pytest.mark.integration)])
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    if request.param == "hash":
        yield HashEmbedder()
    elif request.param == "actors":
        from retrieval.embedding import ActorEmbedder

        yield ActorEmbedder(request.getfixturevalue("embedder_handles"), RetrievalConfig())
    else:
        yield request.getfixturevalue(f"{request.param}_embedder")


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
    vectors_ND, tokens = await embedder.embed_queries_with_tokens([])
    assert (vectors_ND.shape, tokens) == ((0, dim), [])
    vectors_ND, encoded = await embedder.embed_passages_with_tokens([], "int8")
    assert (vectors_ND.shape, encoded.codes) == ((0, dim), ())


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


async def test_many_texts_keep_their_order(embedder: Embedder) -> None:
    texts = [f"passage {number} {'word ' * (number % 7)}" for number in range(150)]
    vectors_ND, encoded = await embedder.embed_passages_with_tokens(texts, "sign")
    np.testing.assert_allclose(await embedder.embed_passages(texts), vectors_ND, atol=2e-5)
    for number in (0, 1, 77, 149):
        alone_ND, alone = await embedder.embed_passages_with_tokens([texts[number]], "sign")
        np.testing.assert_allclose(alone_ND[0], vectors_ND[number], atol=2e-5)
        assert token_codes.num_tokens(alone.codes[0]) == token_codes.num_tokens(encoded.codes[number])


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
    texts = ["", " ", "\n", "日本語 😀", "x" * 5000, "word " * 3000]
    vectors_ND, encoded = await embedder.embed_passages_with_tokens(texts, "int8")
    assert np.isfinite(vectors_ND).all()
    assert len(encoded.codes) == len(texts)
    assert token_codes.num_tokens(encoded.codes[0]) == 0


async def test_token_vectors_are_of_the_same_pass_and_unit_length(embedder: Embedder) -> None:
    texts = ["who wrote the first report", "when"]
    vectors_ND, tokens = await embedder.embed_queries_with_tokens(texts)
    np.testing.assert_allclose(vectors_ND, await embedder.embed_queries(texts), atol=2e-5)
    assert [len(tokens_TD) for tokens_TD in tokens] == [5, 1]
    for tokens_TD in tokens:
        assert tokens_TD.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(tokens_TD, axis=1), 1.0, atol=1e-4)


async def test_token_codes_hold_the_vectors_of_a_passages_tokens(embedder: Embedder) -> None:
    dim = (await embedder.info()).dim
    vectors_ND, encoded = await embedder.embed_passages_with_tokens(["the flood of 1997", "a dam"], "int8")
    assert encoded.codec == "int8"
    np.testing.assert_allclose(
        vectors_ND, await embedder.embed_passages(["the flood of 1997", "a dam"]), atol=2e-5
    )
    _, tokens = await embedder.embed_queries_with_tokens(["the flood of 1997"])  # No prompts in these models.
    decoded_TD = token_codes.decode_all(encoded.codes[:1], "int8", dim)[0]
    np.testing.assert_allclose((decoded_TD * tokens[0]).sum(axis=1), 1.0, atol=0.01)


async def test_info_is_stable(embedder: Embedder) -> None:
    info = await embedder.info()
    assert info == await embedder.info()
    assert len(info.model_hash) == 16
    assert info.max_tokens >= 128


async def test_backends_are_different_models_of_near_vectors(
    torch_embedder: SentenceTransformerEmbedder, onnx_embedder: SentenceTransformerEmbedder
) -> None:
    infos = await torch_embedder.info(), await onnx_embedder.info()
    assert [info.backend for info in infos] == ["torch-fp32", "onnx-int8"]
    assert infos[0].model_hash != infos[1].model_hash
    assert infos[0].dim == infos[1].dim
    assert infos[0].max_tokens == infos[1].max_tokens
    texts = ["who wrote the first report on the flood", "a B-tree keeps its keys sorted " * 12, "yes"]
    both = [await embedder.embed_queries_with_tokens(texts) for embedder in (torch_embedder, onnx_embedder)]
    cosines_N = (both[0][0] * both[1][0]).sum(axis=1)
    assert cosines_N.mean() > 0.995
    assert cosines_N.min() > 0.99
    for torch_TD, onnx_TD in zip(both[0][1], both[1][1], strict=True):
        assert torch_TD.shape == onnx_TD.shape
        assert (torch_TD * onnx_TD).sum(axis=1).mean() > 0.98
