"""The searcher over shards in memory: sharding changes nothing, losses are named, stages are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder
from fakes_shard import SPEC, MemoryShard
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexOverloaded, IndexUnavailable, InvalidSearch, UnknownVersion
from retrieval.filters import Compare
from retrieval.ranking.searcher import Searcher
from retrieval.ranking.view import IndexView
from retrieval.types import SearchRequest, SearchResult

WORDS = (
    "bread",
    "dough",
    "flour",
    "water",
    "salt",
    "yeast",
    "oven",
    "zebra",
    "grass",
    "lion",
    "herd",
    "cache",
)
BAKING = (
    "Bread is baked in an oven.\n\nDough of flour rests first.\n\nYeast raises the dough.\n\nSalt is added."
)


def searcher_over(
    shards: Sequence[MemoryShard], config: RetrievalConfig | None = None, embedder: HashEmbedder | None = None
) -> Searcher:
    spec = shards[0].spec

    def view_of(version: str | None) -> IndexView:
        if version not in (None, spec.version_id, "stable"):
            raise UnknownVersion(f"no index version or alias {version!r}")
        return IndexView(spec.version_id, 3, spec, embedder or HashEmbedder(spec.model_dim), shards)

    return Searcher(view_of, config or RetrievalConfig())


async def baking(num_shards: int = 1) -> list[MemoryShard]:
    """Return shards that hold three documents, each a shard of its own while there are enough."""
    shards = [MemoryShard(f"shard-{number}") for number in range(num_shards)]
    for number, (name, text) in enumerate(
        (
            ("a", BAKING),
            ("b", "Zebras graze on grass.\n\nA lion hunts the herd."),
            ("c", "Rye bread with yeast."),
        )
    ):
        await shards[number % num_shards].put(name, text)
    return shards


def skipped(result: SearchResult) -> dict[str, str | None]:
    return {stage.name: stage.skipped for stage in result.stages}


def essence(result: SearchResult) -> list[tuple[str, float]]:
    return [(hit.chunk_id, round(hit.score, 4)) for hit in result.hits]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=12),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    request_=st.sampled_from(
        [{}, {"mode": "lexical"}, {"mode": "dense"}, {"fusion": "rrf"}, {"rerank": "none"}, {"mmr": 0.5}]
    ),
)
async def test_any_sharding_gives_the_same_answer(texts, query, places, request_) -> None:
    whole, parts = [MemoryShard()], [MemoryShard(f"shard-{number}") for number in range(3)]
    for number, words in enumerate(texts):
        await whole[0].put(f"d{number}", " ".join(words))
        await parts[places[number]].put(f"d{number}", " ".join(words))
    request = SearchRequest(" ".join(query), k=5, **request_)
    (one,) = await searcher_over(whole).search([request])
    (many,) = await searcher_over(parts).search([request])
    assert essence(one) == essence(many)
    assert one.passages == many.passages


async def test_a_batch_answers_as_its_requests_one_by_one() -> None:
    shards = await baking(2)
    requests = [
        SearchRequest("dough", k=2),
        SearchRequest("dough", k=2, mode="lexical"),
        SearchRequest("zebra", mode="dense", version="stable"),
        SearchRequest("bread", rerank="none", expand="parent"),
        SearchRequest("bread", tenant="nobody"),
        SearchRequest("yeast", deadline_s=30.0, mmr=0.3),
    ]
    together = await searcher_over(shards).search(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = await searcher_over(shards).search([request])
        assert essence(alone) == essence(result)
        assert alone.passages == result.passages


async def test_hits_carry_their_scores_before_and_after() -> None:
    (result,) = await searcher_over(await baking()).search([SearchRequest("dough yeast", k=3)])
    for hit in result.hits:
        assert hit.fused_score is not None
        assert hit.rerank_score is not None
        assert 0 <= hit.score <= 1
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    (plain,) = await searcher_over(await baking()).search([SearchRequest("dough yeast", k=3, rerank="none")])
    assert all(hit.score == hit.fused_score and hit.rerank_score is None for hit in plain.hits)


async def test_a_single_leg_keeps_its_own_scores_unless_a_rerank_is_asked_for() -> None:
    searcher = searcher_over(await baking())
    dense, lexical, reranked = await searcher.search(
        [
            SearchRequest("dough", mode="dense"),
            SearchRequest("dough", mode="lexical"),
            SearchRequest("dough", mode="dense", rerank="maxsim"),
        ]
    )
    assert all(hit.score == hit.dense_score and hit.fused_score is None for hit in dense.hits)
    assert all(hit.score == hit.lexical_score for hit in lexical.hits)
    assert all(hit.rerank_score is not None for hit in reranked.hits)


async def test_words_alone_need_no_embedding() -> None:
    embedder = HashEmbedder(SPEC.model_dim)
    await searcher_over(await baking(), embedder=embedder).search([SearchRequest("dough", mode="lexical")])
    assert embedder.query_calls == 0


async def test_alpha_moves_the_answer_between_the_legs() -> None:
    searcher = searcher_over(await baking())
    for alpha, leg in ((1.0, "dense_score"), (0.0, "lexical_score")):
        (result,) = await searcher.search([SearchRequest("dough of bread", alpha=alpha, rerank="none")])
        found = [getattr(hit, leg) or 0.0 for hit in result.hits]
        assert found == sorted(found, reverse=True)


async def test_a_lost_shard_is_named_and_the_others_answer() -> None:
    shards = await baking(2)
    shards[1].error["candidates"] = IndexUnavailable("it is gone")
    (result,) = await searcher_over(shards).search([SearchRequest("bread", k=10)])
    assert result.partial
    assert result.missing_shards == ("shard-1",)
    assert {passage.document for passage in result.passages} == {"a", "c"}


async def test_a_slow_shard_is_left_out_at_the_deadline() -> None:
    shards = await baking(2)
    shards[1].delay_s["candidates"] = 30.0
    (result,) = await searcher_over(shards).search([SearchRequest("bread", k=10, deadline_s=0.4)])
    assert result.missing_shards == ("shard-1",)
    assert result.hits


async def test_a_shard_lost_after_its_candidates_leaves_no_hole() -> None:
    shards = await baking(2)
    shards[0].error["passages"] = IndexUnavailable("it is gone")
    (result,) = await searcher_over(shards).search([SearchRequest("dough", k=2)])
    assert result.missing_shards == ("shard-0",)
    assert [passage.document for passage in result.passages] == ["b", "b"]


async def test_no_shard_left_is_an_error_of_ours() -> None:
    shards = await baking(2)
    shards[0].error["candidates"] = IndexUnavailable("gone")
    shards[1].error["candidates"] = IndexUnavailable("gone, too")
    with pytest.raises(IndexUnavailable, match=r"shard-0: gone; shard-1: gone, too"):
        await searcher_over(shards).search([SearchRequest("dough")])
    only = await baking()
    only[0].error["candidates"] = IndexOverloaded("full")
    with pytest.raises(IndexOverloaded):
        await searcher_over(only).search([SearchRequest("dough")])


async def test_a_callers_fault_is_not_a_lost_shard() -> None:
    shards = await baking(2)
    shards[1].error["candidates"] = InvalidSearch("wrong type")
    with pytest.raises(InvalidSearch, match="wrong type"):
        await searcher_over(shards).search([SearchRequest("dough")])


async def test_a_chunk_deleted_half_way_leaves_its_place_to_the_next() -> None:
    class Forgetful(MemoryShard):
        async def passages(self, version, chunk_ids, tenant, before=0, after=0):
            found = await super().passages(version, chunk_ids, tenant, before, after)
            return {one: passage for one, passage in found.items() if not one.startswith("a:")}

    shard = Forgetful()
    await shard.put("a", BAKING)
    await shard.put("b", "Zebras graze.\n\nDough for zebras.")
    (result,) = await searcher_over([shard]).search([SearchRequest("dough", k=2)])
    assert [hit.rank for hit in result.hits] == [0, 1]
    assert {passage.document for passage in result.passages} == {"b"}
    assert not result.partial


async def test_stages_say_what_ran_and_why_not() -> None:
    (result,) = await searcher_over(await baking()).search([SearchRequest("dough", mmr=0.5, expand="parent")])
    assert list(skipped(result)) == [
        "embed", "dense", "lexical", "fuse", "maxsim", "mmr", "expand", "passages",
    ]  # fmt: skip
    assert set(skipped(result).values()) == {None}


async def test_maxsim_without_token_codes_is_reported() -> None:
    shard = MemoryShard(spec=replace(SPEC, tokens="none"))
    await shard.put("a", BAKING)
    asked, auto = await searcher_over([shard]).search(
        [SearchRequest("dough", rerank="maxsim"), SearchRequest("dough")]
    )
    assert "keeps no token codes" in (skipped(asked)["maxsim"] or "")
    assert "maxsim" not in skipped(auto)
    assert essence(asked) == essence(auto)


async def test_a_stage_over_its_budget_is_skipped_and_tried_again_later() -> None:
    shards = await baking()
    shards[0].delay_s["token_codes"] = 0.05
    searcher = searcher_over(shards, RetrievalConfig(maxsim_budget_ms=20.0))
    seen = []
    for _ in range(30):
        (result,) = await searcher.search([SearchRequest("dough", k=3)])
        seen.append(skipped(result)["maxsim"])
        assert len(result.hits) == 3
    assert seen[0] is None
    assert seen[1] == "time budget"
    assert None in seen[2:]


async def test_slow_token_codes_do_not_cost_the_answer() -> None:
    shards = await baking(2)
    shards[0].delay_s["token_codes"] = 30.0
    (result,) = await searcher_over(shards).search([SearchRequest("dough", deadline_s=0.4)])
    assert skipped(result)["maxsim"] == "time budget"
    assert not result.partial
    assert result.hits


async def test_a_record_without_token_codes_keeps_its_fused_score() -> None:
    shard = MemoryShard()
    await shard.put("a", BAKING)
    await shard.put("b", "Dough of flour rests first.", with_codes=False)
    (result,) = await searcher_over([shard]).search([SearchRequest("dough of flour", k=10)])
    (bare,) = [hit for hit in result.hits if hit.chunk_id.startswith("b:")]
    assert bare.rerank_score is None
    assert bare.score == pytest.approx(bare.fused_score)


async def test_diversity_drops_a_double_from_the_first_hits() -> None:
    shard = MemoryShard()
    for name in ("a", "b"):
        await shard.put(name, "Dough of flour rests first.")
    await shard.put("c", "Dough with salt.")
    plain, diverse = await searcher_over([shard]).search(
        [SearchRequest("dough of flour", k=2), SearchRequest("dough of flour", k=2, mmr=0.3)]
    )
    assert [passage.document for passage in plain.passages] == ["a", "b"]
    assert [passage.document for passage in diverse.passages] == ["a", "c"]


async def test_parents_are_exact_and_no_chunk_is_told_twice() -> None:
    shard = MemoryShard()
    await shard.put("a", BAKING)
    (result,) = await searcher_over([shard], RetrievalConfig(parent_chunks=1)).search(
        [SearchRequest("dough", k=10, expand="parent")]
    )
    for passage in result.passages:
        assert passage.text == BAKING[passage.start : passage.end]
    assert len(result.hits) == len(result.passages) == 2
    (continued,) = await searcher_over([shard]).search([SearchRequest("flour", k=1, expand="neighbours")])
    assert continued.passages[0].text == "Dough of flour rests first.\n\nYeast raises the dough."


async def test_an_explanation_shows_legs_plans_and_version() -> None:
    shards = await baking(2)
    (result,) = await searcher_over(shards).search([SearchRequest("the dough rests", explain=True)])
    told = result.explanation
    assert told is not None
    assert (told.version, told.epoch) == (SPEC.version_id, 3)
    assert told.plans == {"shard-0": "exact 5 of 5", "shard-1": "exact 2 of 2"}
    assert told.seqs == {"shard-0": 2, "shard-1": 1}
    assert told.terms == ("dough", "rest")
    assert told.dense == tuple(sorted(told.dense, key=lambda item: (-item[1], item[0])))
    assert [chunk_id[0] for chunk_id, _ in told.lexical] == ["a", "a"]
    assert result.seq == 3


async def test_vectors_of_another_model_are_never_compared() -> None:
    class Other(HashEmbedder):
        async def info(self):
            return replace(await super().info(), model_hash="another")

    searcher = searcher_over(await baking(), embedder=Other(SPEC.model_dim))
    with pytest.raises(IndexUnavailable, match="was made by model"):
        await searcher.search([SearchRequest("dough")])


async def test_a_shorter_version_is_asked_with_shorter_vectors() -> None:
    shapes = []

    class Noting(MemoryShard):
        async def candidates(self, version, requests, vectors_QD, stats, deadline_s=None):
            shapes.append(vectors_QD.shape)
            assert np.allclose(np.linalg.norm(vectors_QD, axis=1), 1.0)
            padded = np.zeros((len(requests), self.spec.model_dim), np.float32)
            return await super().candidates(version, requests, padded, stats, deadline_s)

    shard = Noting(spec=replace(SPEC, dim=16, tokens="none"))
    await shard.put("a", BAKING)
    await searcher_over([shard]).search([SearchRequest("dough")])
    assert shapes == [(1, 16)]


async def test_one_call_a_shard_and_stage_for_a_whole_batch() -> None:
    shards = await baking(2)
    await searcher_over(shards).search([SearchRequest(word, k=3) for word in WORDS])
    for shard in shards:
        assert shard.calls == {"term_stats": 1, "candidates": 1, "token_codes": 1, "passages": 1}


async def test_passages_by_id_come_from_any_shard_or_not_at_all() -> None:
    shards = await baking(2)
    searcher = searcher_over(shards)
    ids = [one for shard in shards for one in shard.rows]
    found = await searcher.passages([*ids, "no:such:1"])
    assert [passage.chunk_id for passage in found if passage is not None] == ids
    assert found[-1] is None
    assert await searcher.passages(ids, tenant="other") == [None] * len(ids)
    assert await searcher.passages([]) == []
    shards[1].error["passages"] = IndexUnavailable("gone")
    with pytest.raises(IndexUnavailable, match="gone"):
        await searcher.passages(ids)


async def test_filters_reach_the_shards() -> None:
    shard = MemoryShard()
    await shard.put("old", BAKING, metadata={"year": 1990})
    await shard.put("new", BAKING, metadata={"year": 2020})
    (result,) = await searcher_over([shard]).search(
        [SearchRequest("dough", k=50, filter=Compare("year", ">", 2000))]
    )
    assert {passage.document for passage in result.passages} == {"new"}


async def test_an_unknown_version_is_the_callers_fault() -> None:
    with pytest.raises(UnknownVersion):
        await searcher_over(await baking()).search([SearchRequest("dough", version="v9")])
