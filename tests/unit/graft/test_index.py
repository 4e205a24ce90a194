"""The operations on an index, over one shard without a map, and over one and two with one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes_retrieval import HashEmbedder

from graft.index import AsyncIndex
from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidVersion
from retrieval.service import LocalRetrieval
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Record
from retrieval.versions import VersionState

RECORDS = [Record(f"r{number}", f"apple {number}") for number in range(8)]


@contextlib.asynccontextmanager
async def opened(form: str, folder: Path, **settings: object) -> AsyncIterator[AsyncIndex]:
    """Yield the index of a folder; `form` is `local`, or a number of shards."""
    if form == "local":
        config = RetrievalConfig(**settings)  # pyright: ignore[reportArgumentType]
        opening = LocalRetrieval.open(folder, config, HashEmbedder(32))
    else:
        config = RetrievalConfig(num_shards=int(form), **settings)  # pyright: ignore[reportArgumentType]
        opening = ShardedRetrieval.open(folder, config, HashEmbedder(32))
    async with await opening as retrieval:
        yield AsyncIndex(retrieval, retrieval, "default")


@pytest.fixture(params=["local", "1", "2"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


async def active(index: AsyncIndex) -> str:
    first = (await index.versions())[0]
    assert first.state is VersionState.ACTIVE
    return first.version_id


async def test_rollback_goes_to_what_answered_before_not_to_what_was_built_last(
    tmp_path: Path, form: str
) -> None:
    async with opened(form, tmp_path) as index:
        await index._store.upsert(RECORDS)
        first = await active(index)
        second = (await index.reindex(vectors="int8")).version_id
        third = (await index.reindex(vectors="binary")).version_id
        await index.switch(second)
        assert (await index.rollback()).version_id == first == await active(index)
        assert third in {info.version_id for info in await index.versions()}


async def test_rollbacks_go_further_back_each_time_also_after_a_restart(tmp_path: Path, form: str) -> None:
    async with opened(form, tmp_path) as index:
        await index._store.upsert(RECORDS)
        first = await active(index)
        second = (await index.reindex(vectors="int8")).version_id
        third = (await index.reindex(vectors="binary")).version_id
        await index.switch(second)
        await index.switch(third)
        assert (await index.rollback()).version_id == second
    async with opened(form, tmp_path) as index:
        assert (await index.rollback()).version_id == first
        with pytest.raises(InvalidVersion, match=r"no version answered before .*switch"):
            await index.rollback()
        await index.switch(third)
        assert (await index.rollback()).version_id == first


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
async def test_rollback_knows_what_answered_before_a_reshard(tmp_path: Path, before: int, after: int) -> None:
    config = RetrievalConfig(num_shards=before)
    async with await ShardedRetrieval.open(tmp_path, config, HashEmbedder(32)) as retrieval:
        index = AsyncIndex(retrieval, retrieval, "default")
        await retrieval.upsert(RECORDS)
        first = await active(index)
        await index.switch((await index.reindex(vectors="int8")).version_id)
        await retrieval.reshard(after)
        assert (await index.rollback()).version_id == first == await active(index)


async def test_rollback_passes_over_versions_that_were_dropped(tmp_path: Path, form: str) -> None:
    async with opened(form, tmp_path) as index:
        await index._store.upsert(RECORDS)
        first = await active(index)
        second = (await index.reindex(vectors="int8")).version_id
        third = (await index.reindex(vectors="binary")).version_id
        with pytest.raises(InvalidVersion, match="no version answered before"):
            await index.rollback()
        await index.switch(second)
        await index.switch(third)
        await index.drop_version(second)
        assert (await index.rollback()).version_id == first
