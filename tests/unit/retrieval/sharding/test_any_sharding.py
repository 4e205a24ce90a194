"""However documents are spread over shards, the answers are the same list, ties and scores included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opened_shards import opened

from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Record, SearchRequest, SearchResult

SHARDINGS = (1, 2, 3, 5)
WORDS = ("graft", "plant", "root", "stem", "tree", "branch")
NAMES = [f"r{number}" for number in range(12)]

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
upsert = st.tuples(st.just("upsert"), st.dictionaries(st.sampled_from(NAMES), texts, min_size=1, max_size=6))
delete = st.tuples(st.just("delete"), st.sampled_from(NAMES))
queries = st.builds(
    SearchRequest,
    query=texts,
    k=st.integers(1, 15),
    mode=st.sampled_from(["hybrid", "dense", "lexical"]),
    fusion=st.sampled_from(["convex", "rrf"]),
    exact=st.booleans(),
)


async def apply(retrieval: ShardedRetrieval, operations: Sequence[tuple[str, object]]) -> None:
    for verb, what in operations:
        if verb == "upsert":
            assert isinstance(what, dict)
            await retrieval.upsert([Record(name, text) for name, text in what.items()])
            continue
        for document in await retrieval.documents():
            if document.name == what:
                await retrieval.delete(document.document_id)


def answer(result: SearchResult) -> list[tuple[object, ...]]:
    """Return what a caller sees of a result, scores to the last bit."""
    return [
        (hit.chunk_id, hit.score, hit.dense_score, hit.lexical_score, passage.text)
        for hit, passage in zip(result.hits, result.passages, strict=True)
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operations=st.lists(st.one_of(upsert, delete), min_size=1, max_size=8),
    requests=st.lists(queries, min_size=1, max_size=4),
)
def test_any_sharding_gives_the_same_list(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, object]],
    requests: list[SearchRequest],
) -> None:
    async def answers(num_shards: int) -> list[list[tuple[object, ...]]]:
        folder = tmp_path_factory.mktemp(f"shards{num_shards}-")
        async with opened(folder, num_shards=num_shards, num_candidates=4) as retrieval:
            await apply(retrieval, operations)
            return [answer(result) for result in await retrieval.search(requests)]

    found = [asyncio.run(answers(num_shards)) for num_shards in SHARDINGS]
    for num_shards, other in zip(SHARDINGS[1:], found[1:], strict=True):
        assert other == found[0], f"{num_shards} shards"


async def test_equal_texts_are_ordered_by_id_over_any_sharding(tmp_path: Path) -> None:
    expected: list[list[tuple[object, ...]]] = []
    for num_shards in SHARDINGS:
        async with opened(tmp_path / str(num_shards), num_shards=num_shards) as retrieval:
            await retrieval.upsert([Record(f"same{number}", "graft the tree") for number in range(300)])
            results = await retrieval.search(
                [SearchRequest("tree", k=40, mode=mode) for mode in ("hybrid", "dense", "lexical")]
            )
            assert all(
                [hit.chunk_id for hit in r.hits] == sorted(hit.chunk_id for hit in r.hits) for r in results
            )
            expected.append([answer(result)[:40] for result in results])  # type: ignore[misc]
    assert all(other == expected[0] for other in expected[1:])
