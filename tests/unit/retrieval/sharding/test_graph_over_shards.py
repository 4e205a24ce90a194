"""The graph over shards: a lost one is named, a reshard or a promotion makes it anew, versions never mix."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opened_shards import node_of, opened

from retrieval.admin import VersionChange
from retrieval.errors import GraphDisabled, IndexUnavailable, InvalidVersion
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, Record

RECORDS = [Record(f"r{n}", f"We know that Node{n} and Shared Name met.") for n in range(24)]
EVERY = {"Shared Name", *(f"Node{n}" for n in range(24))}


def shard_of(retrieval: ShardedRetrieval, name: str) -> int:
    return retrieval.placement.shard_of(document_id_of(DEFAULT_TENANT, DEFAULT_LIBRARY, name))


async def taken_up(retrieval: ShardedRetrieval) -> None:
    async with asyncio.timeout(20):
        while (await retrieval.graph.stats()).num_pending:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)


async def names(retrieval: ShardedRetrieval) -> set[str]:
    found = await retrieval.graph.entities(limit=1000)
    assert not found.partial
    return {entity.name for entity in found.entities}


async def test_a_lost_shard_is_named_and_the_rest_answers(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3, graph="rules", search_deadline_s=2.0) as retrieval:
        await retrieval.upsert(RECORDS)
        await taken_up(retrieval)
        whole = await retrieval.graph.communities()
        await node_of(retrieval, 1).aclose()
        here = {f"Node{n}" for n in range(24) if shard_of(retrieval, f"r{n}") != 1}
        found = await retrieval.graph.entities(limit=1000)
        assert (found.partial, found.missing_shards) == (True, ("shard-1",))
        assert {entity.name for entity in found.entities} == here | {"Shared Name"}
        near = await retrieval.graph.neighbourhood("Shared Name", max_neighbours=50)
        assert (near.partial, {entity.name for entity in near.neighbours}) == (True, here)
        groups = await retrieval.graph.communities()
        assert groups.missing_shards == ("shard-1",)
        assert {entity.name for one in groups.communities for entity in one.entities} == here | {
            "Shared Name"
        }
        assert groups.communities != whole.communities
        for shard in (0, 2):
            await node_of(retrieval, shard).aclose()
        with pytest.raises(IndexUnavailable):
            await retrieval.graph.entities()


async def test_a_reshard_and_a_promotion_make_the_graph_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=1, num_replicas=1, graph="rules") as retrieval:
        await retrieval.upsert(RECORDS)
        await taken_up(retrieval)
        before = await retrieval.graph.communities()
        await retrieval.reshard(2)
        await taken_up(retrieval)
        assert await names(retrieval) == EVERY
        assert await retrieval.graph.communities() == before
        await node_of(retrieval, 0, 0).aclose()
        await retrieval.promote(0)
        await taken_up(retrieval)
        assert await names(retrieval) == EVERY


async def test_after_a_switch_every_shard_answers_from_the_new_version(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2, graph="rules") as retrieval:
        await retrieval.upsert(RECORDS)
        await taken_up(retrieval)
        before = await retrieval.graph.neighbourhood("Shared Name")
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        await retrieval.wait_version(made.version_id, timeout_s=20)
        await retrieval.switch(made.version_id)
        assert (await retrieval.graph.neighbourhood("Shared Name")).num_pending <= 24
        await taken_up(retrieval)
        assert await retrieval.graph.neighbourhood("Shared Name") == before


async def test_an_answer_whose_rounds_saw_two_versions_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, num_shards=2, graph="rules") as retrieval:
        await retrieval.upsert(RECORDS)
        await taken_up(retrieval)
        node, asked = node_of(retrieval, 1), 0
        answer = node.answer

        async def of_another_version_at_first(call, timeout_s):
            nonlocal asked
            answered = await answer(call, timeout_s)
            asked += 1
            if call.method != "graph_answer" or asked > limit:
                return answered
            return answered._replace(value=("another", answered.value[1]))

        monkeypatch.setattr(node, "answer", of_another_version_at_first)
        limit = 1
        assert len((await retrieval.graph.entities(limit=1000)).entities) == len(EVERY)
        assert asked > 3
        limit = 10_000
        with pytest.raises(IndexUnavailable, match="switched"):
            await retrieval.graph.entities()


async def test_off_every_form_says_how_to_turn_it_on(tmp_path: Path) -> None:
    for num_shards in (1, 2):
        async with opened(tmp_path / str(num_shards), num_shards=num_shards) as retrieval:
            await retrieval.upsert(RECORDS)
            for call in (
                retrieval.graph.entities(),
                retrieval.graph.neighbourhood("x"),
                retrieval.graph.communities(),
                retrieval.graph.retry_failed(),
            ):
                with pytest.raises(GraphDisabled, match='set it to "rules"'):
                    await call
            assert (await retrieval.graph.stats()).source == "none"
            await retrieval.graph.drop()
    async with opened(tmp_path / "2", num_shards=2, graph="rules") as retrieval:
        with pytest.raises(InvalidVersion):
            await retrieval.graph.drop()
        await taken_up(retrieval)
        assert await names(retrieval) == EVERY
        stats = await retrieval.graph.stats()
        assert (stats.num_chunks, stats.source) == (24, "rules")
