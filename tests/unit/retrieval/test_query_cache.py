"""The query cache embeds each text once and stays bounded."""

from __future__ import annotations

import numpy as np

from retrieval.query_cache import QueryCache


class Counting:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def __call__(self, texts: list[str]) -> np.ndarray:
        self.calls.append(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32).reshape(len(texts), 2)


async def test_each_text_is_embedded_once() -> None:
    cache, embed = QueryCache(10), Counting()
    first_ND = await cache.vectors(["a", "bb", "a"], embed)
    np.testing.assert_array_equal(first_ND, [[1, 1], [2, 1], [1, 1]])
    second_ND = await cache.vectors(["bb", "ccc"], embed)
    np.testing.assert_array_equal(second_ND, [[2, 1], [3, 1]])
    assert embed.calls == [["a", "bb"], ["ccc"]]


async def test_least_recently_used_is_dropped_first() -> None:
    cache, embed = QueryCache(2), Counting()
    for text in ("a", "b", "a", "c", "a", "b"):
        await cache.vectors([text], embed)
    assert embed.calls == [["a"], ["b"], ["c"], ["b"]]


async def test_no_entries_keep_nothing_and_no_texts_have_a_shape() -> None:
    cache, embed = QueryCache(0), Counting()
    await cache.vectors(["a"], embed)
    await cache.vectors(["a"], embed)
    assert embed.calls == [["a"], ["a"]]
    assert (await cache.vectors([], embed)).shape == (0, 2)


async def test_queries_with_tokens_are_kept_apart_and_serve_those_without() -> None:
    cache, calls = QueryCache(32), []

    async def embed(texts: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        calls.append(texts)
        vectors_ND = np.array([[len(text), 1.0] for text in texts], dtype=np.float32).reshape(len(texts), 2)
        return vectors_ND, [np.full((len(text), 2), 0.5, np.float32) for text in texts]

    vectors_ND, tokens = await cache.vectors_with_tokens(["a", "bb", "a"], embed)
    np.testing.assert_array_equal(vectors_ND, [[1, 1], [2, 1], [1, 1]])
    assert [len(tokens_TD) for tokens_TD in tokens] == [1, 2, 1]
    await cache.vectors_with_tokens(["bb", "a"], embed)
    plain = Counting()
    await cache.vectors(["a", "bb"], plain)
    assert calls == [["a", "bb"]]
    assert plain.calls == []
    await cache.vectors_with_tokens(["c", "d", "e"], embed)  # Two of 32 entries may hold token vectors.
    await cache.vectors_with_tokens(["a"], embed)
    assert calls == [["a", "bb"], ["c", "d", "e"], ["a"]]
