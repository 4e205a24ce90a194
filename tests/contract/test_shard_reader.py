"""One suite over every `ShardReader`: the one in memory and the one over SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder
from fakes_shard import SPEC, MemoryShard, paragraphs

from retrieval.config import RetrievalConfig
from retrieval.errors import UnknownVersion
from retrieval.filters import And, Compare, Exists, Not
from retrieval.ranking.token_codes import num_tokens
from retrieval.reader import Candidates, ShardReader, TermStats
from retrieval.shard.shard import LocalShard, Shard
from retrieval.truth.store import Embedded
from retrieval.types import Chunk, DocumentText, SearchRequest

EMBEDDER = HashEmbedder(dim=SPEC.model_dim)
VERSION = SPEC.version_id
BAKING = (
    "Bread is baked in an oven.\n\nDough of flour rests.\n\n\nYeast raises the dough.  \n\nSalt is added."
)
ZEBRA = "Zebras graze on grass.\n\nA zebra runs from lions."


class Filled(Protocol):
    """A shard that a test can fill."""

    @property
    def reader(self) -> ShardReader:
        """Return the shard."""
        ...

    async def put(
        self,
        document: str,
        text: str,
        *,
        library: str = ...,
        tenant: str = ...,
        metadata: Mapping[str, str | float] | None = ...,
    ) -> list[str]:
        """Store a document of one chunk a paragraph; return its chunk ids."""
        ...


class _Memory:
    def __init__(self) -> None:
        self.reader = MemoryShard()
        self.put = self.reader.put


class _Local:
    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.reader = LocalShard(shard)

    async def put(
        self,
        document: str,
        text: str,
        *,
        library: str = "default",
        tenant: str = "default",
        metadata: Mapping[str, str | float] | None = None,
    ) -> list[str]:
        added = self._shard.add(document, text.encode(), library, tenant, metadata)
        work = self._shard.store.claim()
        assert work is not None
        spans = paragraphs(text)
        chunks = [Chunk(place, text[start:end], start, end) for place, (start, end) in enumerate(spans)]
        vectors_ND, encoded = await EMBEDDER.embed_passages_with_tokens(
            [chunk.text for chunk in chunks], SPEC.tokens
        )
        embedded = Embedded(chunks, vectors_ND, encoded.codes)
        assert self._shard.store.finish(work, "text/plain", DocumentText(text), embedded)
        prefix = f"{added.document_id}:{added.content_hash[:12]}"
        return [f"{prefix}:{chunk.ordinal}" for chunk in chunks]


@pytest.fixture(params=["memory", "local"])
async def shard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Filled]:
    if request.param == "memory":
        yield _Memory()
        return
    local = Shard(tmp_path, RetrievalConfig())
    try:
        local.store.configure(SPEC)
        yield _Local(local)
    finally:
        local.close()


Ask = Callable[..., Awaitable[Candidates]]


@pytest.fixture
def ask(shard: Filled) -> Ask:
    async def one(query: str, stats: TermStats | None = None, **request) -> Candidates:
        vectors_QD = await EMBEDDER.embed_queries([query])
        (found,) = await shard.reader.candidates(
            VERSION, [SearchRequest(query, **request)], vectors_QD, stats
        )
        return found

    return one


async def test_legs_are_best_first_with_ties_by_chunk_id(shard: Filled, ask: Ask) -> None:
    await shard.put("a.txt", BAKING)
    await shard.put("b.txt", BAKING)
    found = await ask("dough and flour")
    for leg in (found.dense, found.lexical):
        assert leg
        assert list(leg) == sorted(leg, key=lambda item: (-item[1], item[0]))
    assert len(found.dense) == 8
    assert len(found.lexical) == 4


async def test_dense_scores_are_the_cosines(shard: Filled, ask: Ask) -> None:
    ids = await shard.put("a.txt", BAKING)
    vectors = await shard.reader.vectors(VERSION, [*ids, "no:such:1"])
    assert set(vectors) == set(ids)
    (query_D,) = await EMBEDDER.embed_queries(["yeast"])
    found = await ask("yeast")
    assert dict(found.dense) == pytest.approx({one: float(vectors[one] @ query_D) for one in ids}, abs=1e-5)


async def test_a_mode_leaves_the_other_leg_out(shard: Filled, ask: Ask) -> None:
    await shard.put("a.txt", BAKING)
    assert (await ask("dough", mode="dense")).lexical == ()
    assert (await ask("dough", mode="lexical")).dense == ()


async def test_given_statistics_decide_the_lexical_scores(shard: Filled, ask: Ask) -> None:
    await shard.put("a.txt", BAKING)
    own = await shard.reader.term_stats(VERSION, ["dough", "nothere"])
    assert (own.num_chunks, own.chunks_with["dough"], own.chunks_with.get("nothere", 0)) == (4, 2, 0)
    alone, same = await ask("dough"), await ask("dough", own)
    assert same.lexical == alone.lexical
    rare = TermStats(4_000, own.num_terms * 1_000, {"dough": 2})
    assert (await ask("dough", rare)).lexical[0][1] > alone.lexical[0][1]


async def test_only_what_is_asked_for_is_searched(shard: Filled, ask: Ask) -> None:
    mine = await shard.put("a.txt", BAKING, metadata={"year": 1999, "kind": "recipe"})
    rye = await shard.put("b.txt", BAKING, library="rye", metadata={"year": 2001})
    theirs = await shard.put("c.txt", BAKING, tenant="other")

    async def found(**request) -> set[str]:
        legs = await ask("dough", **request)
        return {chunk_id for leg in (legs.dense, legs.lexical) for chunk_id, _ in leg}

    assert await found() == {*mine, *rye}
    assert await found(library="rye") == set(rye)
    assert await found(tenant="other") == set(theirs)
    assert await found(tenant="nobody") == set()
    assert await found(document_ids=(mine[0].partition(":")[0],)) == set(mine)
    assert await found(filter=Compare("year", ">=", 2000)) == set(rye)
    assert await found(filter=Not(Compare("year", ">=", 2000))) == set(mine)
    assert await found(filter=And((Exists("kind"), Compare("year", "<", 2000)))) == set(mine)


async def test_passages_are_the_tenants_and_gone_ones_are_left_out(shard: Filled) -> None:
    ids = await shard.put("a.txt", BAKING)
    await shard.put("z.txt", ZEBRA, tenant="other")
    found = await shard.reader.passages(VERSION, [ids[2], "no:such:1", "", ids[0]], "default")
    assert {chunk_id: passage.text for chunk_id, passage in found.items()} == {
        ids[2]: "Yeast raises the dough.",
        ids[0]: "Bread is baked in an oven.",
    }
    assert await shard.reader.passages(VERSION, ids, "other") == {}


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 1), (9, 0), (9, 9)])
async def test_a_grown_passage_is_one_exact_stretch_of_the_document(
    shard: Filled, before: int, after: int
) -> None:
    ids = await shard.put("a.txt", BAKING)
    spans = paragraphs(BAKING)
    found = await shard.reader.passages(VERSION, ids, "default", before, after)
    for place, chunk_id in enumerate(ids):
        passage = found[chunk_id]
        assert passage.chunk_id == chunk_id
        assert passage.start == spans[max(place - before, 0)][0]
        assert passage.end == spans[min(place + after, len(ids) - 1)][1]
        assert passage.text == BAKING[passage.start : passage.end]


async def test_neighbours_are_in_order_and_hold_the_chunk(shard: Filled) -> None:
    ids = await shard.put("a.txt", BAKING)
    await shard.put("z.txt", ZEBRA)
    around = await shard.reader.neighbours(VERSION, ids[1], 1, 5, "default")
    assert [passage.chunk_id for passage in around] == ids
    assert await shard.reader.neighbours(VERSION, ids[1], 1, 1, "other") == []


async def test_token_codes_hold_a_row_a_token(shard: Filled) -> None:
    ids = await shard.put("a.txt", BAKING)
    codes = await shard.reader.token_codes(VERSION, [*ids, "no:such:1"])
    assert {chunk_id: num_tokens(code) for chunk_id, code in codes.items()} == dict(
        zip(ids, (6, 4, 4, 3), strict=True)
    )


async def test_an_empty_shard_answers_nothing(shard: Filled, ask: Ask) -> None:
    found = await ask("dough")
    assert (found.dense, found.lexical) == ((), ())
    assert (await shard.reader.term_stats(VERSION, ["dough"])).num_chunks == 0


async def test_a_version_that_is_not_there_is_refused(shard: Filled) -> None:
    with pytest.raises(UnknownVersion):
        await shard.reader.candidates(
            "v9", [SearchRequest("x")], np.zeros((1, SPEC.model_dim), np.float32), None
        )
    with pytest.raises(UnknownVersion):
        await shard.reader.passages("v9", ["a:b:0"], "default")
