"""Resharding while documents come and go: nothing is lost, and a crash leaves the old map or the new."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from opened_shards import node_of, opened

from retrieval.admin import VersionChange
from retrieval.errors import InvalidVersion, StorageFull
from retrieval.sharding import router
from retrieval.sharding.reshard import Reshard
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, DocumentState, Record, SearchRequest


def records(first: int, stop: int) -> list[Record]:
    return [Record(f"r{number}", f"topic {number % 5} of {number}") for number in range(first, stop)]


async def names(retrieval: ShardedRetrieval) -> set[str]:
    (result,) = await retrieval.search([SearchRequest("topic", k=1000)])
    assert not result.partial
    return {passage.document for passage in result.passages}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1)])
async def test_same_answers_over_another_number_of_shards(tmp_path: Path, before: int, after: int) -> None:
    requests = [SearchRequest("topic 3", k=30, mode=mode) for mode in ("hybrid", "dense", "lexical")]
    async with opened(tmp_path, num_shards=before) as retrieval:
        await retrieval.upsert(records(0, 50))
        document = await retrieval.add("file.txt", b"A topic.", metadata={"year": 2020})
        await retrieval.wait_ready([document.document_id], timeout_s=60)
        second = (await retrieval.make_version(VersionChange(vectors="int8"))).version_id
        await retrieval.wait_version(second, timeout_s=60)
        await retrieval.set_alias("candidate", second)
        expected = [(r.hits, r.passages) for r in await retrieval.search(requests)]
        documents = await retrieval.documents()
        acknowledged = await retrieval.upsert(records(49, 50))
        assert await retrieval.reshard(after) == retrieval.placement
        assert len(retrieval.shards) == after
        for _ in range(2):
            found = [(r.hits, r.passages) for r in await retrieval.search(requests)]
            assert found == expected
        assert [one.document_id for one in await retrieval.documents()] == [
            one.document_id for one in documents
        ]
        assert (await retrieval.document(document.document_id)).metadata == {"year": 2020}
        # What was acknowledged by the shards before is in what answers now.
        waited = SearchRequest("topic", k=1000, min_seq=acknowledged.seqs)
        assert len((await retrieval.search([waited]))[0].hits) == 51
        (result,) = await retrieval.search([SearchRequest("topic", k=1000, version="candidate")])
        assert (result.index_version, len(result.hits)) == (second, 51)
        await retrieval.switch("candidate")
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert not (tmp_path / "shard.sqlite3").exists()
    async with opened(tmp_path, num_shards=after) as retrieval:
        assert len(await names(retrieval)) == 51
        assert (await retrieval.search(requests))[0].index_version == second


async def test_reshard_under_load_loses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 100))
        expected = {f"r{number}" for number in range(100)}
        stop = asyncio.Event()
        files: list[str] = []

        async def write() -> None:
            number = 100
            while not stop.is_set():
                await retrieval.upsert(records(number, number + 2))
                expected.update((f"r{number}", f"r{number + 1}"))
                gone = f"r{number - 90}"
                expected.discard(gone)  # Before: a search may see it gone before this task goes on.
                await retrieval.delete(document_id_of(DEFAULT_TENANT, DEFAULT_LIBRARY, gone))
                number += 2
                await asyncio.sleep(0.002)

        async def add() -> None:
            while not stop.is_set() and len(files) < 40:
                document = await retrieval.add(f"f{len(files)}.txt", f"topic {len(files)}".encode())
                files.append(document.document_id)
                expected.add(document.name)
                await asyncio.sleep(0.01)

        async def read() -> None:
            while not stop.is_set():
                before = set(expected)
                found = await names(retrieval)
                # Those under way may be missing or gone; all others answer all the time.
                missing = {name for name in before - found if name in expected and name.startswith("r")}
                assert not missing
                await asyncio.sleep(0.01)

        load = asyncio.gather(write(), add(), read())
        for num_shards in (3, 1, 2):
            await asyncio.sleep(0.2)
            await retrieval.reshard(num_shards)
        stop.set()
        await load
        ready = await retrieval.wait_ready(files, timeout_s=120)
        assert {document.state for document in ready} == {DocumentState.READY}
        assert await names(retrieval) == expected
    async with opened(tmp_path, num_shards=2) as retrieval:
        assert await names(retrieval) == expected


@pytest.mark.parametrize("step", ["_prepare", "_pass", "_check", "_hand_over"])
async def test_failure_before_the_hand_over_leaves_the_old_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 30))

        async def fail(*_: object) -> None:
            raise StorageFull("the disk is full")

        owner = Reshard if hasattr(Reshard, step) else router.Router
        monkeypatch.setattr(owner, step, fail)
        with pytest.raises(StorageFull):
            await retrieval.reshard(3)
        monkeypatch.undo()
        await asyncio.wait_for(retrieval.upsert(records(30, 40)), 10)
        assert len(await names(retrieval)) == 40
        assert [path.name for path in (tmp_path / "shards").iterdir()] == ["1"]
        await retrieval.reshard(3)
        assert len(await names(retrieval)) == 40


@pytest.mark.parametrize("step", ["copied", "committed"])
async def test_crash_leaves_the_old_map_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The process dies half-way: nothing of it cleans up, and the next one opens one whole index."""

    class Crash(BaseException):
        pass

    async def crash(*_: object) -> None:
        raise Crash

    async def nothing(*_: object, **__: object) -> None:
        return

    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 30))
        hosts = retrieval._hosts
        closing = hosts.close
        if step == "copied":
            monkeypatch.setattr(router, "write_placement", lambda *_: (_ for _ in ()).throw(Crash))
        else:
            monkeypatch.setattr(router.Router, "_drain", crash)
        monkeypatch.setattr(hosts, "close", nothing)
        old = retrieval.placement
        with pytest.raises(Crash):
            await retrieval.reshard(3)
        monkeypatch.setattr(hosts, "close", closing)
        for placement in {old, retrieval.placement}:
            await hosts.close(placement, remove=False)
        if step == "copied":
            for shard in range(3):
                node = hosts._nodes.pop((2, shard, 0), None)  # pyright: ignore[reportAttributeAccessIssue]
                assert node is not None
                await node.aclose()
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["1", "2"]
    num_shards = 2 if step == "copied" else 3
    async with opened(tmp_path, num_shards=num_shards) as retrieval:
        assert len(await names(retrieval)) == 30
        assert [path.name for path in (tmp_path / "shards").iterdir()] == [
            str(retrieval.placement.generation)
        ]


async def test_reshard_waits_for_no_version_being_built(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        await retrieval.upsert(records(0, 10))
        store = node_of(retrieval, 0).local.store
        spec = store.version().spec
        store.make_version(replace(spec, vectors="binary"))
        with pytest.raises(InvalidVersion, match="being built"):
            await retrieval.reshard(3)
