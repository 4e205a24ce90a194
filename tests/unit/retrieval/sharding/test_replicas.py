"""Replicas follow the log: nothing deleted comes back, a lost copy goes unnoticed, one can take over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opened_shards import node_of, opened, until

from retrieval.admin import VersionChange
from retrieval.errors import IndexUnavailable
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, DocumentState, Record, SearchRequest


def records(first: int, stop: int) -> list[Record]:
    return [Record(f"r{number}", f"topic {number}") for number in range(first, stop)]


def id_of(name: str) -> str:
    return document_id_of(DEFAULT_TENANT, DEFAULT_LIBRARY, name)


async def names(retrieval: ShardedRetrieval) -> set[str]:
    (result,) = await retrieval.search([SearchRequest("topic", k=1000)])
    assert not result.partial
    return {passage.document for passage in result.passages}


async def caught_up(retrieval: ShardedRetrieval) -> None:
    """Return once every copy holds what its primary does."""

    def level(shard: int) -> bool:
        slots = retrieval.shards[shard].slots
        try:
            return len({node_of(retrieval, shard, slot).local.store.seq() for slot in slots}) == 1
        except IndexUnavailable:
            return False  # It is being filled anew.

    for shard in range(len(retrieval.shards)):
        await until(lambda shard=shard: level(shard))


@pytest.mark.parametrize("num_shards", [1, 2])
async def test_any_copy_reads_what_was_written(tmp_path: Path, num_shards: int) -> None:
    async with opened(tmp_path, num_shards=num_shards, num_replicas=2) as retrieval:
        expected: set[str] = set()
        for turn in range(12):
            await retrieval.upsert(records(turn, turn + 1))
            expected.add(f"r{turn}")
            if turn % 3 == 2:
                await retrieval.delete(id_of(f"r{turn - 1}"))
                expected.discard(f"r{turn - 1}")
            for _ in range(4):  # Each time another copy.
                assert await names(retrieval) == expected
        document = await retrieval.add("file.txt", b"A topic of its own.")
        (ready,) = await retrieval.wait_ready([document.document_id], timeout_s=60)
        assert ready.state is DocumentState.READY
        for _ in range(4):
            assert await names(retrieval) == {*expected, "file.txt"}


async def test_versions_and_their_switch_reach_the_replicas(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=1, num_replicas=1) as retrieval:
        await retrieval.upsert(records(0, 10))
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        await retrieval.wait_version(made.version_id, timeout_s=60)
        await retrieval.switch(made.version_id)
        await retrieval.upsert(records(10, 12))
        for _ in range(6):
            (result,) = await retrieval.search([SearchRequest("topic", k=100)])
            assert (result.index_version, len(result.hits)) == (made.version_id, 12)


async def test_lost_copy_goes_unnoticed(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2, num_replicas=1) as retrieval:
        await retrieval.upsert(records(0, 20))
        await caught_up(retrieval)
        await node_of(retrieval, 0, 0).aclose()
        await node_of(retrieval, 1, 1).aclose()
        for _ in range(6):
            assert len(await names(retrieval)) == 20
        with pytest.raises(IndexUnavailable):  # Only the primary takes writes.
            await retrieval.upsert(records(20, 40))


async def test_replica_behind_what_was_acknowledged_does_not_answer_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=1, num_replicas=1, call_timeout_s=1.0) as retrieval:
        await retrieval.upsert(records(0, 10))
        await caught_up(retrieval)
        follower = node_of(retrieval, 0, 1)._follower
        assert follower is not None
        await follower.aclose()
        await retrieval.delete(id_of("r1"))
        await node_of(retrieval, 0, 0).aclose()
        with pytest.raises(IndexUnavailable):
            await retrieval.search([SearchRequest("topic", k=100)])
        with pytest.raises(IndexUnavailable, match="was acknowledged"):
            await retrieval.promote(0)


async def test_replica_takes_over_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2, num_replicas=2) as retrieval:
        await retrieval.upsert(records(0, 30))
        queued = await retrieval.add("file.txt", b"A topic that waits.")
        await retrieval.wait_ready([queued.document_id], timeout_s=60)
        await caught_up(retrieval)
        await node_of(retrieval, 0, 0).remove()
        placement = await retrieval.promote(0)
        assert placement.primary(0) in (1, 2)
        await retrieval.upsert(records(30, 60))
        document = await retrieval.add("more.txt", b"Another topic.")
        await retrieval.wait_ready([document.document_id], timeout_s=60)
        expected = {f"r{number}" for number in range(60)} | {"file.txt", "more.txt"}
        for _ in range(4):
            assert await names(retrieval) == expected
    async with opened(tmp_path, num_shards=2, num_replicas=2) as retrieval:
        assert retrieval.shards[0].primary == placement.primary(0)
        await caught_up(retrieval)  # The lost copy is filled anew.
        for _ in range(4):
            assert await names(retrieval) == expected


async def test_copy_with_writes_of_its_own_is_filled_anew(tmp_path: Path) -> None:
    """A primary that comes back after another copy took over holds changes that nobody else has."""
    async with opened(tmp_path, num_shards=1, num_replicas=1) as retrieval:
        await retrieval.upsert(records(0, 10))
        await caught_up(retrieval)
        follower = node_of(retrieval, 0, 1)._follower
        assert follower is not None
        await follower.aclose()
        await node_of(retrieval, 0, 0).local.upsert(records(90, 95))  # Reached no replica, told nobody.
        await retrieval.promote(0, 1)
        await retrieval.upsert(records(10, 20))
        expected = {f"r{number}" for number in range(20)}
        await caught_up(retrieval)
        for _ in range(4):
            assert await names(retrieval) == expected


async def test_slow_copy_is_hedged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, num_shards=1, num_replicas=1) as retrieval:
        await retrieval.upsert(records(0, 10))
        await caught_up(retrieval)
        for _ in range(30):
            await names(retrieval)
        slow = node_of(retrieval, 0, 1)
        answer = slow.answer

        async def slowly(*args):
            await asyncio.sleep(30)
            return await answer(*args)

        monkeypatch.setattr(slow, "answer", slowly)
        async with asyncio.timeout(10):
            for _ in range(6):
                assert len(await names(retrieval)) == 10
        assert retrieval.shards[0].num_hedged >= 1
