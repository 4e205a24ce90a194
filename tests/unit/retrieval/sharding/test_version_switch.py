"""A switch of versions over shards: one epoch, no mixed answer, whole at every crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opened_shards import node_of, opened, until

from retrieval.admin import VersionChange
from retrieval.errors import IndexUnavailable, InvalidVersion, UnknownVersion
from retrieval.sharding import version_switch
from retrieval.sharding.epochs import Epoch
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.sharding.switch_side import SwitchSide
from retrieval.types import Record, SearchRequest
from retrieval.versions import VersionState

CHANGE = VersionChange(vectors="int8")


def records(first: int, stop: int) -> list[Record]:
    return [Record(f"r{number}", f"topic {number}") for number in range(first, stop)]


async def built(retrieval: ShardedRetrieval) -> str:
    made = await retrieval.make_version(CHANGE)
    return (await retrieval.wait_version(made.version_id, timeout_s=60)).version_id


async def active(retrieval: ShardedRetrieval) -> list[tuple[int, str]]:
    """Return the epoch and the active version of each shard."""
    stores = [node_of(retrieval, shard) for shard in range(len(retrieval.shards))]
    return [((await node._switching.epoch()).epoch, node.local.store.version().version_id) for node in stores]


async def test_switch_under_load_fails_no_query_and_mixes_no_version(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        await retrieval.upsert(records(0, 60))
        first = (await retrieval.versions())[0].version_id
        second = await built(retrieval)
        seen: list[str] = []
        written = 60
        stop = asyncio.Event()

        async def search() -> None:
            while not stop.is_set():
                (result,) = await retrieval.search([SearchRequest("topic", k=1000, explain=True)])
                assert not result.partial
                assert result.explanation is not None
                assert result.index_version == result.explanation.version
                assert len(result.hits) >= 60
                seen.append(result.index_version)

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await retrieval.upsert(records(written, written + 3))
                written += 3
                (result,) = await retrieval.search([SearchRequest("topic", k=1000)])
                assert len(result.hits) >= min(written, 1000)
                await asyncio.sleep(0.01)

        load = asyncio.gather(search(), search(), write())
        for version in (second, first, second):
            await asyncio.sleep(0.1)
            info = await retrieval.switch(version)
            assert (info.version_id, info.state) == (version, VersionState.ACTIVE)
            (result,) = await retrieval.search([SearchRequest("topic", k=1)])
            assert result.index_version == version
        stop.set()
        await load
        assert set(seen) == {first, second}
        assert await active(retrieval) == [(4, second)] * 3
        history = [(epoch.version, epoch.reason) for epoch in await retrieval.epochs()]
        assert history == [(first, "first"), (second, "switch"), (first, "switch"), (second, "switch")]
    async with opened(tmp_path, num_shards=3) as retrieval:
        (result,) = await retrieval.search([SearchRequest("topic", k=1000)])
        assert result.index_version == second
        assert len(result.hits) == written


async def test_searches_name_the_new_version_before_a_shard_lets_writes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 10))
        second = await built(retrieval)
        seen: list[str] = []
        enter = SwitchSide.enter_epoch

        async def search_first(side: SwitchSide, epoch: Epoch, is_primary: bool) -> None:
            (result,) = await retrieval.search([SearchRequest("topic", k=100)])
            assert len(result.hits) == 10
            seen.append(result.index_version)
            await enter(side, epoch, is_primary)

        monkeypatch.setattr(SwitchSide, "enter_epoch", search_first)
        await retrieval.switch(second)
    assert seen == [second, second]


async def test_incomplete_or_unknown_version_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 10))
        with pytest.raises(UnknownVersion):
            await retrieval.switch("nothing")
        second = await built(retrieval)
        node = node_of(retrieval, 1)
        node.local.store.drop_version(second)
        with pytest.raises(UnknownVersion):
            await retrieval.switch(second)
        assert {epoch for epoch, _ in await active(retrieval)} == {1}
        await retrieval.upsert(records(10, 12))  # Nothing stays held back.


async def test_alias_answers_on_every_shard(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 20))
        second = await built(retrieval)
        await retrieval.set_alias("candidate", second)
        (result,) = await retrieval.search([SearchRequest("topic", k=100, version="candidate")])
        assert result.index_version == second
        assert len(result.hits) == 20
        with pytest.raises(UnknownVersion, match="'nobody'"):
            await retrieval.search([SearchRequest("topic", version="nobody")])
        with pytest.raises(InvalidVersion, match="stays"):
            await retrieval.drop_version((await retrieval.versions())[0].version_id)
        await retrieval.set_alias("candidate", None)
        await retrieval.drop_version(second)
        assert len(await retrieval.versions()) == 1


async def test_dead_coordinator_before_the_commit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases end: writes go on, and the next switch works."""
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 10))
        second = await built(retrieval)
        for shard in retrieval.shards:
            await shard.write("prepare_switch", Epoch(2, second, "switch", 0.0), 0.2)
        writing = asyncio.create_task(retrieval.upsert(records(10, 20)))
        await asyncio.sleep(0.05)
        assert not writing.done()
        await writing
        assert {epoch for epoch, _ in await active(retrieval)} == {1}
        await retrieval.switch(second)
        (result,) = await retrieval.search([SearchRequest("topic", k=100)])
        assert (len(result.hits), result.index_version) == (20, second)


async def test_shard_that_refuses_to_prepare_undoes_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        await retrieval.upsert(records(0, 10))
        second = await built(retrieval)
        busy = Epoch(2, second, "switch", 1.0)
        await retrieval.shards[2].write("prepare_switch", busy, 0.3)
        with pytest.raises(InvalidVersion, match="under way"):
            await retrieval.switch(second)
        await asyncio.wait_for(retrieval.upsert(records(10, 12)), 5)
        assert {epoch for epoch, _ in await active(retrieval)} == {1}


async def test_crash_after_the_commit_is_finished_by_the_next_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        await retrieval.upsert(records(0, 30))
        second = await built(retrieval)

        async def crash(*_: object) -> None:
            raise IndexUnavailable("the coordinator died")

        monkeypatch.setattr(version_switch, "tell", crash)
        with pytest.raises(IndexUnavailable, match="died"):
            await retrieval.switch(second)
        monkeypatch.undo()
    async with opened(tmp_path, num_shards=3) as retrieval:
        assert await active(retrieval) == [(2, second)] * 3
        (result,) = await retrieval.search([SearchRequest("topic", k=100)])
        assert (len(result.hits), result.index_version) == (30, second)


async def test_changed_configuration_is_switched_to_by_all_shards_together(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 20))
        first = (await retrieval.versions())[0].version_id
    async with opened(tmp_path, num_shards=2, chunk_tokens=64) as retrieval:
        ledgers = [node_of(retrieval, shard).local.ledger for shard in range(2)]
        await until(lambda: all(ledger.history[-1].version != first for ledger in ledgers))
        assert retrieval._views.view_of(None).version != first
        assert {epoch for epoch, _ in await active(retrieval)} == {2}
        assert len((await retrieval.search([SearchRequest("topic", k=100)]))[0].hits) == 20
