"""One suite over every `Retriever`: the fake, the one-process form and the actor form."""

from __future__ import annotations

import pytest

from retrieval.errors import InvalidSearch, UnknownVersion
from retrieval.filters import And, Compare, Exists, In, Not
from retrieval.types import DocumentState, SearchRequest

WAIT_S = 60.0

TEXTS = {
    "paged.txt": "Paged attention keeps the key value cache in blocks.\n\nThey are shared by copy on write.",
    "bread.txt": "Bread is baked from flour, water, salt and yeast.\n\nDough rests before it is baked.",
    "zebra.txt": "Zebras graze on grass.\n\nThey live in herds on the savanna.",
}


@pytest.fixture
async def filled(store):
    """The store with three documents of tenant `default` and one of tenant `other`."""
    added = [await store.add(name, text.encode()) for name, text in TEXTS.items()]
    added.append(await store.add("bread2.txt", b"Rye bread with caraway.", library="rye"))
    settled = await store.wait_ready([one.document_id for one in added], timeout_s=WAIT_S)
    foreign = await store.add("secret.txt", b"Bread recipes of another tenant.", tenant="other")
    settled += await store.wait_ready([foreign.document_id], timeout_s=WAIT_S, tenant="other")
    assert {one.state for one in settled} == {DocumentState.READY}
    return store


async def test_results_come_in_request_order_with_their_passages(filled) -> None:
    queries = ["how is bread baked", "what do zebras graze on", "paged attention cache blocks"]
    results = await filled.search([SearchRequest(query, k=2) for query in queries])
    assert [result.passages[0].document for result in results] == ["bread.txt", "zebra.txt", "paged.txt"]
    for result in results:
        assert [hit.chunk_id for hit in result.hits] == [passage.chunk_id for passage in result.passages]
        assert [hit.rank for hit in result.hits] == list(range(len(result.hits)))
        assert not result.partial
        assert result.missing_shards == ()


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_hits_are_ordered_by_score_then_chunk_id(filled, mode) -> None:
    (result,) = await filled.search([SearchRequest("bread baked dough", k=50, mode=mode)])
    assert result.hits
    keys = [(-hit.score, hit.chunk_id) for hit in result.hits]
    assert keys == sorted(keys)
    assert len({hit.chunk_id for hit in result.hits}) == len(result.hits)


async def test_modes_say_which_leg_answered(filled) -> None:
    dense, lexical = await filled.search(
        [SearchRequest("bread", mode="dense"), SearchRequest("bread", mode="lexical")]
    )
    assert all(hit.lexical_score is None and hit.dense_score == hit.score for hit in dense.hits)
    assert all(hit.dense_score is None and hit.lexical_score == hit.score for hit in lexical.hits)


async def test_k_bounds_hits_and_fewer_come_when_fewer_exist(filled) -> None:
    few, all_of_them = await filled.search([SearchRequest("bread", k=1), SearchRequest("bread", k=1000)])
    assert len(few.hits) == 1
    total = sum(library.num_chunks for library in await filled.libraries())
    assert len(all_of_them.hits) == total


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_filters_hold_in_every_mode(filled, mode) -> None:
    bread = next(one for one in await filled.documents() if one.name == "bread.txt")
    everything = {"k": 1000, "mode": mode}
    mine, rye, one, foreign, nobody = await filled.search(
        [
            SearchRequest("bread", **everything),
            SearchRequest("bread", library="rye", **everything),
            SearchRequest("bread", document_ids=(bread.document_id,), **everything),
            SearchRequest("bread", tenant="other", **everything),
            SearchRequest("bread", tenant="nobody", **everything),
        ]
    )
    assert "secret.txt" not in {passage.document for passage in mine.passages}
    assert {passage.document for passage in rye.passages} == {"bread2.txt"}
    assert {passage.document for passage in one.passages} == {"bread.txt"}
    assert {passage.document for passage in foreign.passages} == {"secret.txt"}
    assert nobody.hits == ()


async def test_passages_are_exact_spans_of_their_documents(filled) -> None:
    (result,) = await filled.search([SearchRequest("bread", k=100)])
    for passage in result.passages:
        text = (await filled.text(passage.document_id)).text
        assert text[passage.start : passage.end] == passage.text


async def test_passages_by_id_keep_order_and_tenancy(filled) -> None:
    (result,) = await filled.search([SearchRequest("bread", k=3)])
    ids = [hit.chunk_id for hit in result.hits]
    found = await filled.passages([ids[1], "no:such:1", "", "a:b:c:d", ids[0]])
    assert found == [result.passages[1], None, None, None, result.passages[0]]
    assert await filled.passages(ids, tenant="other") == [None] * len(ids)


async def test_a_replaced_documents_old_chunk_ids_are_gone(filled) -> None:
    (before,) = await filled.search([SearchRequest("zebras graze", k=1)])
    document = await filled.add("zebra.txt", b"Zebras now sleep.")
    await filled.wait_ready([document.document_id], timeout_s=WAIT_S)
    assert await filled.passages([before.hits[0].chunk_id]) == [None]
    (after,) = await filled.search([SearchRequest("zebras", k=1)])
    assert after.passages[0].text == "Zebras now sleep."
    assert after.seq > before.seq


async def test_no_requests_give_no_results(filled) -> None:
    assert await filled.search([]) == []
    assert await filled.passages([]) == []


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (SearchRequest(""), "query is empty"),
        (SearchRequest(" \n"), "query is empty"),
        (SearchRequest("x" * 1_000_000), "max_query_chars"),
        (SearchRequest("\ud800"), "Unicode"),
        (SearchRequest("x", k=0), "k must be"),
        (SearchRequest("x", k=1001), "k must be"),
        (SearchRequest("x", mode="psychic"), "mode must be"),  # pyright: ignore[reportArgumentType]
        (SearchRequest("x", document_ids=("d",) * 10_001), "document_ids"),
        (SearchRequest("x", fusion="sum"), "fusion must be"),  # pyright: ignore[reportArgumentType]
        (SearchRequest("x", alpha=2.0), "alpha must be"),
        (SearchRequest("x", mmr=-1.0), "mmr must be"),
        (SearchRequest("x", deadline_s=0.0), "deadline_s"),
        (SearchRequest("x", rerank="cross_encoder"), "cross_encoder"),
    ],
)
async def test_request_out_of_bounds_is_refused_with_the_bound(filled, request_, says) -> None:
    with pytest.raises(InvalidSearch, match=says):
        await filled.search([SearchRequest("fine"), request_])


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "a\"b' OR 1=1; --",
        "NEAR(a b)",
        "bread AND NOT (flour",
        "text:bread",
        "*",
        "^",
        "-",
        "ß İ",
        "\0",
        "???",
    ],
)
async def test_query_syntax_is_only_words(filled, query) -> None:
    for result in await filled.search([SearchRequest(query, mode="lexical"), SearchRequest(query)]):
        assert {passage.document for passage in result.passages} <= {*TEXTS, "bread2.txt"}


async def test_a_batch_answers_as_single_requests_do(filled) -> None:
    requests = [SearchRequest(word, k=3) for word in ("bread", "zebras", "attention", "herds", "salt")]
    together = await filled.search(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = await filled.search([request])
        assert [hit.chunk_id for hit in alone.hits] == [hit.chunk_id for hit in result.hits]


async def test_typed_filters_choose_documents(store) -> None:
    for name, year in (("old.txt", 1990), ("new.txt", 2020)):
        await store.add(name, b"Bread is baked.", metadata={"year": year, "kind": "recipe"})
    bare = await store.add("bare.txt", b"Bread is baked.")
    ids = [document.document_id for document in await store.documents()]
    await store.wait_ready([*ids, bare.document_id], timeout_s=WAIT_S)
    for predicate, expected in (
        (Compare("year", ">", 2000), {"new.txt"}),
        (Not(Compare("year", ">", 2000)), {"old.txt", "bare.txt"}),
        (And((Exists("year"), In("kind", ("recipe", "novel")))), {"old.txt", "new.txt"}),
    ):
        for mode in ("hybrid", "dense", "lexical"):
            (result,) = await store.search([SearchRequest("bread", k=50, filter=predicate, mode=mode)])
            assert {passage.document for passage in result.passages} == expected


async def test_a_result_tells_its_stages_and_explains_itself_when_asked(filled) -> None:
    plain, told = await filled.search([SearchRequest("bread"), SearchRequest("bread", explain=True)])
    names = [stage.name for stage in plain.stages]
    assert [name for name in names if name != "maxsim"] == ["embed", "dense", "lexical", "fuse", "passages"]
    assert all(stage.ms >= 0 for stage in plain.stages)
    assert plain.explanation is None
    explanation = told.explanation
    assert explanation.version == told.index_version
    assert explanation.terms == ("bread",)
    assert explanation.plans.keys() == explanation.seqs.keys()  # Those of every shard.
    assert all(name.startswith("shard-") for name in explanation.plans)
    for leg, score in (("dense", "dense_score"), ("lexical", "lexical_score")):
        of_leg = dict(getattr(explanation, leg))
        assert of_leg
        for hit in told.hits:
            assert getattr(hit, score) == of_leg.get(hit.chunk_id)


@pytest.mark.parametrize("expand", ["parent", "neighbours"])
async def test_expanded_passages_are_exact_and_hold_their_chunk(filled, expand) -> None:
    plain, grown = await filled.search(
        [SearchRequest("dough rests", k=1), SearchRequest("dough rests", k=1, expand=expand)]
    )
    assert grown.hits[0].chunk_id == plain.hits[0].chunk_id
    small, large = plain.passages[0], grown.passages[0]
    assert large.start <= small.start
    assert large.end >= small.end
    assert (await filled.text(large.document_id)).text[large.start : large.end] == large.text


async def test_options_of_ranking_change_the_order_not_the_set(filled) -> None:
    everything = {"k": 1000}
    plain, *others = await filled.search(
        [
            SearchRequest("bread baked", rerank="none", **everything),
            SearchRequest("bread baked", fusion="rrf", **everything),
            SearchRequest("bread baked", alpha=1.0, **everything),
            SearchRequest("bread baked", mmr=0.5, **everything),
            SearchRequest("bread baked", rerank="maxsim", **everything),
            SearchRequest("bread baked", exact=True, deadline_s=WAIT_S, **everything),
        ]
    )
    for other in others:
        assert {hit.chunk_id for hit in other.hits} == {hit.chunk_id for hit in plain.hits}


async def test_a_named_version_answers_and_an_unknown_one_is_refused(filled) -> None:
    (active,) = await filled.search([SearchRequest("bread")])
    (named,) = await filled.search([SearchRequest("bread", version=active.index_version)])
    assert named.hits == active.hits
    with pytest.raises(UnknownVersion):
        await filled.search([SearchRequest("bread", version="no-such-version")])
