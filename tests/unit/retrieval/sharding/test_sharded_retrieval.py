"""Documents over shards: routing, merged lists, lost shards, read-your-writes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opened_shards import node_of, opened

from retrieval.errors import (
    IndexUnavailable,
    IngestTimeout,
    InvalidDocument,
    InvalidSearch,
    InvalidVector,
    UnknownDocument,
)
from retrieval.restore import restore_index
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, DocumentState, Record, SearchRequest

QUERY = SearchRequest("topic", k=1000)


def record(number: int, text: str = "topic") -> Record:
    return Record(f"r{number}", f"{text} {number}")


def id_of(name: str) -> str:
    return document_id_of(DEFAULT_TENANT, DEFAULT_LIBRARY, name)


async def found(retrieval: ShardedRetrieval, request: SearchRequest = QUERY) -> set[str]:
    (result,) = await retrieval.search([request])
    assert not result.partial
    return {passage.document for passage in result.passages}


async def test_documents_are_spread_and_read_as_one(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        acknowledged = await retrieval.upsert([record(number) for number in range(60)], library="one")
        assert acknowledged.count == 60
        assert set(acknowledged.seqs) == {"shard-0", "shard-1", "shard-2"}
        file = await retrieval.add("notes.txt", b"Roots of a tree.", library="two", metadata={"year": 2020})
        (ready,) = await retrieval.wait_ready([file.document_id], timeout_s=60)
        assert ready.state is DocumentState.READY
        assert [library.name for library in await retrieval.libraries()] == ["one", "two"]
        assert [library.num_chunks for library in await retrieval.libraries()] == [60, 1]
        names = [document.name for document in await retrieval.documents()]
        assert names == sorted(["notes.txt", *(f"r{number}" for number in range(60))])
        assert len(await retrieval.documents(library="one")) == 60
        assert (await retrieval.text(file.document_id)).text == "Roots of a tree."
        assert await retrieval.content(file.document_id) == b"Roots of a tree."
        (result,) = await retrieval.search([SearchRequest("roots tree", k=1)])
        assert result.passages[0].document == "notes.txt"
        hits = [hit.chunk_id for hit in result.hits]
        assert await retrieval.passages([*hits, "no:such:0"]) == [result.passages[0], None]
        await retrieval.delete(file.document_id)
        with pytest.raises(UnknownDocument):
            await retrieval.document(file.document_id)
    async with opened(tmp_path, num_shards=3) as retrieval:
        assert len(await found(retrieval)) == 60


async def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2):
        pass
    with pytest.raises(IndexUnavailable, match="num_shards=0, start, and run `graft index reshard 3`"):
        async with opened(tmp_path, num_shards=3):
            pass


async def test_lost_shard_is_named_and_never_silent(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3, search_deadline_s=5.0) as retrieval:
        await retrieval.upsert([record(number) for number in range(40)])
        lost = {f"r{n}" for n in range(40) if retrieval.placement.shard_of(id_of(f"r{n}")) == 1}
        await node_of(retrieval, 1).aclose()
        for mode in ("hybrid", "dense", "lexical"):
            (result,) = await retrieval.search([SearchRequest("topic", k=1000, mode=mode)])
            assert result.partial
            assert result.missing_shards == ("shard-1",)
            here = {passage.document for passage in result.passages}
            assert here == {f"r{number}" for number in range(40)} - lost
        for call in (
            retrieval.documents(),
            retrieval.libraries(),
            retrieval.passages([f"{id_of(min(lost))}:x:0"]),
        ):
            with pytest.raises(IndexUnavailable):
                await call
        kept = next(f"r{n}" for n in range(40) if f"r{n}" not in lost)
        assert (await retrieval.document(id_of(kept))).name == kept
        for shard in (0, 2):
            await node_of(retrieval, shard).aclose()
        with pytest.raises(IndexUnavailable):
            await retrieval.search([QUERY])


async def test_silent_shard_is_named_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        await retrieval.upsert([record(number) for number in range(40)])
        await found(retrieval)

        async def silent(*_: object) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(node_of(retrieval, 2), "answer", silent)
        async with asyncio.timeout(20):
            (result,) = await retrieval.search([SearchRequest("topic", k=1000, deadline_s=3.0)])
        assert result.missing_shards == ("shard-2",)
        here = [n for n in range(40) if retrieval.placement.shard_of(id_of(f"r{n}")) != 2]
        assert {passage.document for passage in result.passages} == {f"r{n}" for n in here}


async def test_refused_record_reaches_the_caller(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        for wrong in ("", " "):
            with pytest.raises(InvalidDocument, match="no text"):
                await retrieval.upsert([*(record(number) for number in range(20)), Record("wrong", wrong)])
        assert await retrieval.documents() == []
        with pytest.raises(InvalidVector):
            await retrieval.upsert([Record("r1", "text", vector=[1.0, 2.0])])
        with pytest.raises(InvalidSearch):
            await retrieval.search([SearchRequest("")])


async def test_min_seq_waits_for_the_write_it_names(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        seqs = (await retrieval.upsert([record(number) for number in range(10)])).seqs
        assert len(await found(retrieval, SearchRequest("topic", k=100, min_seq=seqs))) == 10
        for wrong in ("shard-2", "shard-0.2", "node", "shard-x"):
            with pytest.raises(InvalidSearch, match="the shards are shard-0, shard-1"):
                await retrieval.search([SearchRequest("topic", min_seq={wrong: 1})])
        ahead = {"shard-0": seqs["shard-0"] + 1}
        waiting = asyncio.create_task(found(retrieval, SearchRequest("topic", k=100, min_seq=ahead)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await found(retrieval)  # Others do not wait for it.
        number = next(n for n in range(10, 99) if retrieval.placement.shard_of(id_of(f"r{n}")) == 0)
        await retrieval.upsert([record(number)])
        assert f"r{number}" in await waiting


async def test_wait_ready_names_what_is_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        added = [await retrieval.add(f"{n}.txt", f"Text {n}.".encode()) for n in range(6)]
        with pytest.raises(IngestTimeout, match="still under way"):
            await retrieval.wait_ready([document.document_id for document in added], timeout_s=0)
        ready = await retrieval.wait_ready([document.document_id for document in added], timeout_s=60)
        assert [document.name for document in ready] == [document.name for document in added]
        progress = await retrieval.progress()
        assert (progress.num_documents, progress.num_ready, progress.num_under_way) == (6, 6, 0)


async def test_export_gives_every_chunk_once(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        await retrieval.upsert([record(number) for number in range(25)])
        pages = [page async for page in retrieval.export(batch=4)]
        assert sorted(one.name for page in pages for one in page) == sorted(f"r{n}" for n in range(25))
        assert all(len(one.vector or ()) == 32 for page in pages for one in page)


@pytest.mark.parametrize("num_shards", [1, 3])
async def test_snapshot_is_restored_whole(tmp_path: Path, num_shards: int) -> None:
    index, copy = tmp_path / "index", tmp_path / "copy"
    async with opened(index, num_shards=num_shards) as retrieval:
        await retrieval.upsert([record(number) for number in range(20)])
        made = await retrieval.snapshot(copy)
        assert made.num_bytes > 0
        assert len(made.seqs) == num_shards
        await retrieval.upsert([record(99)])
        expected = await retrieval.documents()
    kept = restore_index(copy, index)
    assert kept is not None
    async with opened(index, num_shards=num_shards) as retrieval:
        assert await found(retrieval) == {f"r{number}" for number in range(20)}
    async with opened(kept, num_shards=num_shards) as retrieval:
        assert await retrieval.documents() == expected


async def test_torn_snapshot_of_shards_is_refused(tmp_path: Path) -> None:
    index, copy = tmp_path / "index", tmp_path / "copy"
    async with opened(index, num_shards=2) as retrieval:
        await retrieval.upsert([record(number) for number in range(20)])
        await retrieval.snapshot(copy)
    (copy / "index.json").unlink()
    with pytest.raises(IndexUnavailable, match="torn"):
        restore_index(copy, index)
    async with opened(index, num_shards=2) as retrieval:
        assert len(await found(retrieval)) == 20
