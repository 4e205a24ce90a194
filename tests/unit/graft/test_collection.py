"""Retired index versions: as many are kept as configured, and what is removed is gone from the files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from test_index import RECORDS, active, opened

from graft.index import AsyncIndex
from retrieval.errors import UnknownVersion
from retrieval.filter_parsing import parse_filter
from retrieval.types import Record, SearchRequest
from retrieval.versions import IndexKind, VectorCodec, VersionState

CHANGES: tuple[tuple[VectorCodec, IndexKind], ...] = (
    ("int8", "auto"), ("binary", "auto"), ("float16", "auto"), ("int8", "exact"),
)  # fmt: skip


@pytest.fixture(params=["local", "1", "2"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


async def built(index: AsyncIndex) -> list[str]:
    """Build the versions of `CHANGES` and return the active one's id and theirs."""
    first = await active(index)
    made = [await index.reindex(vectors=vectors, kind=kind) for vectors, kind in CHANGES]
    return [first, *(info.version_id for info in made)]


async def states(index: AsyncIndex) -> dict[str, VersionState]:
    return {info.version_id: info.state for info in await index.versions()}


async def until_kept(index: AsyncIndex, wanted: set[str]) -> None:
    async with asyncio.timeout(30):
        while (await states(index)).keys() != wanted:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.02)


def stored(folder: Path) -> set[str]:
    """Return the tables of chunks and the folders of segments of every shard's file."""
    found = set()
    # Not `rglob`, which fails on a folder that goes meanwhile.
    files = (
        Path(parent, "shard.sqlite3") for parent, _, names in os.walk(folder) if "shard.sqlite3" in names
    )
    for path in files:
        with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT name FROM sqlite_schema WHERE type='table' AND name GLOB '*_[0-9]*'")
            found |= {name for (name,) in rows}
        found |= {f"segments/{segments.name}" for segments in (path.parent / "segments").glob("*")}
    return found


async def test_switches_keep_the_last_retired_versions_and_remove_the_rest(tmp_path: Path, form: str) -> None:
    async with opened(form, tmp_path, keep_versions=1) as index:
        await index._store.upsert(RECORDS)
        _, second, third, fourth, fifth = await built(index)
        for version in (second, third):
            await index.compact(version)
            await index.switch(version)
        assert {"chunks_2", "segments/2"} <= stored(tmp_path)
        # `first` is the third last; what is ready and never answered stays.
        await until_kept(index, {second, third, fourth, fifth})
        await index.switch(fourth)
        await until_kept(index, {third, fourth, fifth})
        async with asyncio.timeout(30):
            while {name for name in stored(tmp_path) if name.endswith(("_1", "_2", "/1", "/2"))}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await index.rollback()).version_id == third
        await index.switch(fifth)
        await until_kept(index, {third, fifth})
        (result,) = await index._store.search([SearchRequest("apple", k=100)])  # pyright: ignore
        assert len(result.hits) == len(RECORDS)
        with pytest.raises(UnknownVersion, match="no index version"):
            await index.switch(second)


async def test_version_with_an_alias_is_not_collected(tmp_path: Path, form: str) -> None:
    async with opened(form, tmp_path, keep_versions=1) as index:
        await index._store.upsert(RECORDS)
        first, second, third, fourth, fifth = await built(index)
        await index.set_alias("golden", first)
        for version in (second, third, fourth):
            await index.switch(version)
        await until_kept(index, {first, third, fourth, fifth})
        assert await index.collect(0) == [third]
        assert await states(index) == {
            first: VersionState.RETIRED, fourth: VersionState.ACTIVE, fifth: VersionState.READY,
        }  # fmt: skip
        await index.set_alias("golden", None)
        assert await index.collect(0) == [first]
        assert await index.collect(0) == []


async def test_what_a_rollback_left_is_collected_before_what_a_rollback_needs(
    tmp_path: Path, form: str
) -> None:
    async with opened(form, tmp_path, keep_versions=3) as index:
        await index._store.upsert(RECORDS)
        first, second, third, *_ = await built(index)
        await index.switch(second)
        await index.switch(third)
        assert (await index.rollback()).version_id == second
        assert await index.collect(1) == [third]
        assert (await index.rollback()).version_id == first


async def test_version_dropped_under_a_search_is_unknown_and_no_fault(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as index:
        await index._store.upsert([Record("r", "apple", metadata={"year": 1990})])
        first, second, *_ = await built(index)
        shard = index._store._shard  # pyright: ignore
        old = shard.store.version(first)
        await index.switch(second)
        request = SearchRequest("apple", filter=parse_filter("year > 1"))
        vectors_QD = np.ones((1, 32), np.float32)
        shard.store.drop_retired([first])  # Its index is in memory still.
        for _ in range(2):
            with (
                pytest.raises(UnknownVersion, match="dropped"),
                shard._residents.at_one_moment(old) as (held, snapshot),
            ):
                held.candidates(snapshot, [request], vectors_QD, None, time.monotonic() + 9.0)
            shard._residents.forget(old.number)


async def test_searches_go_on_while_every_retired_version_is_removed(tmp_path: Path, form: str) -> None:
    async with opened(form, tmp_path, keep_versions=0) as index:
        await index._store.upsert(RECORDS)
        versions = await built(index)
        ended = asyncio.Event()
        seen: set[str] = set()

        async def search() -> None:
            while not ended.is_set():
                (result,) = await index._store.search([SearchRequest("apple", k=100)])  # pyright: ignore
                assert (len(result.hits), result.partial) == (len(RECORDS), False)
                seen.add(result.index_version)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(search())
            for version in versions[1:]:
                await index.switch(version)
                await asyncio.sleep(0.1)
            ended.set()
        assert seen >= set(versions[1:])
        await until_kept(index, {versions[-1]})
