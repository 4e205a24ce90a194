"""The index as its operators see it: `AsyncIndex` is the core; `Index` is its sync and async twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from anyio.from_thread import BlockingPortal

from graft.exchange import read_records, write_records
from graft.twin import async_stream, async_twin, sync_stream, sync_twin
from retrieval.admin import (
    IngestProgress,
    RecallEstimate,
    SegmentReport,
    ShardCopyReport,
    ShardedAdmin,
    SnapshotInfo,
    VersionChange,
)
from retrieval.sharding.placement import Placement
from retrieval.types import DEFAULT_LIBRARY, DocumentStore, Record
from retrieval.versions import IndexKind, TokenCodec, VectorCodec, VersionInfo, VersionState

EXCHANGE_BATCH = 256
"""Records read, sent or written at a time by import and export."""


class AsyncIndex:
    """Versions, compaction, shards, snapshots, recall, progress, import and export of an index."""

    def __init__(self, admin: ShardedAdmin, store: DocumentStore, tenant: str) -> None:
        self._admin = admin
        self._store = store
        self._tenant = tenant

    async def versions(self) -> list[VersionInfo]:
        """Return every version that is kept, the active one first."""
        return await self._admin.versions()

    async def reindex(
        self,
        *,
        embedder: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap_tokens: int | None = None,
        dim: int | None = None,
        vectors: VectorCodec | None = None,
        tokens: TokenCodec | None = None,
        kind: IndexKind | None = None,
        timeout_s: float | None = 3600.0,
    ) -> VersionInfo:
        """Build a version that differs from the active one, beside it; `switch` makes it answer.

        Args:
            embedder: Another embedder.
            chunk_tokens: Another length of chunks.
            chunk_overlap_tokens: Another overlap.
            dim: Numbers kept of each vector.
            vectors: How vectors are stored.
            tokens: How token vectors are stored.
            kind: The base segment's structure.
            timeout_s: Patience; None returns at once with the version as it is being built.

        Raises:
            InvalidVersion: The embedder cannot be loaded, or a value does not fit it.
            IngestTimeout: It is still being built; it goes on in the background.
        """
        change = VersionChange(embedder, chunk_tokens, chunk_overlap_tokens, dim, vectors, tokens, kind)
        made = await self._admin.make_version(change)
        if timeout_s is None or made.state is not VersionState.BUILDING:
            return made
        return await self._admin.wait_version(made.version_id, timeout_s=timeout_s)

    async def wait_version(self, version: str, *, timeout_s: float = 3600.0) -> VersionInfo:
        """Return the version once it holds every document.

        Raises:
            UnknownVersion: There is none of this name.
            IngestTimeout: It is still being built.
        """
        return await self._admin.wait_version(version, timeout_s=timeout_s)

    async def switch(self, version: str) -> VersionInfo:
        """Make a complete version the one that answers, on all shards at once.

        Raises:
            UnknownVersion: There is none of this name.
            InvalidVersion: It is not complete yet.
        """
        return await self._admin.switch(version)

    async def rollback(self) -> VersionInfo:
        """Switch to the version that answered before the one that does; a second call goes further back.

        Raises:
            InvalidVersion: No other version that is still kept answered before.
        """
        return await self._admin.rollback()

    async def drop_version(self, version: str) -> None:
        """Remove a version that does not answer, with everything it stored.

        Raises:
            UnknownVersion: There is none of this name.
            InvalidVersion: It answers now, or an alias names it.
        """
        await self._admin.drop_version(version)

    async def collect(self, keep: int | None = None) -> list[str]:
        """Remove retired versions, with everything they stored, and return their ids.

        Args:
            keep: How many stay, those that rollbacks lead to first; None for `retrieval.keep_versions`.
        """
        return await self._admin.collect(keep)

    async def set_alias(self, alias: str, version: str | None) -> None:
        """Let a name point to a version; None removes the name."""
        await self._admin.set_alias(alias, version)

    async def segments(self) -> list[SegmentReport]:
        """Return what each shard holds in memory of each version."""
        return await self._admin.segments()

    async def compact(self, version: str | None = None) -> list[SegmentReport]:
        """Build new base segments without dead rows and return what is held then."""
        return await self._admin.compact(version)

    async def estimate_recall(self, num_queries: int = 200, *, version: str | None = None) -> RecallEstimate:
        """Return how many of the true nearest chunks the index finds, with a 95 % interval."""
        return await self._admin.estimate_recall(num_queries, version=version)

    async def shards(self) -> list[ShardCopyReport]:
        """Return every copy of every shard: whether it answers, and how far its log is."""
        return await self._admin.copies()

    async def reshard(self, num_shards: int) -> Placement:
        """Spread the documents over another number of shards while they answer, and return the new map.

        Raises:
            InvalidVersion: `num_shards` is out of its bounds, or another change is under way.
            IndexUnavailable: A shard does not answer; the shards before go on as they were.
            StorageFull: The disk has no room for the copy; the shards before go on as they were.
        """
        return await self._admin.reshard(num_shards)

    async def promote(self, shard: int, slot: int | None = None) -> Placement:
        """Let another copy of a shard take its writes, for a primary that is gone for good.

        Args:
            shard: Number of the shard.
            slot: The copy; None for the one that is furthest.

        Raises:
            InvalidVersion: There is no such shard or copy.
            IndexUnavailable: No other copy answers, or the copy lacks writes that were acknowledged.
        """
        return await self._admin.promote(shard, slot)

    async def snapshot(self, folder: str | Path) -> SnapshotInfo:
        """Copy the whole index, while it answers, into an empty folder of the platform's machine.

        Raises:
            InvalidDocument: The folder holds something.
            StorageFull: The disk has no room.
        """
        return await self._admin.snapshot(
            await asyncio.to_thread(lambda: Path(folder).expanduser().absolute())
        )

    async def progress(self, library: str | None = None) -> IngestProgress:
        """Return how far ingestion is, with an estimate of the time left."""
        return await self._admin.progress(library=library, tenant=self._tenant)

    def export(
        self, *, library: str | None = None, batch: int = EXCHANGE_BATCH
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield every searchable chunk of the active version as a record with its vector, in batches."""
        return self._admin.export(library=library, tenant=self._tenant, batch=batch)

    async def export_file(self, path: str | Path, *, library: str | None = None) -> int:
        """Write every searchable chunk to a `.jsonl` or `.parquet` file and return how many there were.

        Raises:
            InvalidDocument: The name ends in neither.
        """
        return await write_records(Path(path), self.export(library=library))

    async def import_file(self, path: str | Path, *, library: str = DEFAULT_LIBRARY) -> int:
        """Store the records of a `.jsonl` or `.parquet` file and return how many there were.

        Records that carry a vector keep it; the others are embedded here.

        Raises:
            InvalidDocument: The file is missing, damaged, or a line is no record; those before it are kept.
            InvalidVector: A vector does not fit the active version.
        """
        count = 0
        async for records in read_records(Path(path), EXCHANGE_BATCH):
            count += (await self._store.upsert(records, library=library, tenant=self._tenant)).count
        return count


class Index:
    """The index of a platform, from any thread or loop; methods with `a` are for `await`."""

    def __init__(self, core: AsyncIndex, portal: BlockingPortal) -> None:
        self._core = core
        self._portal = portal

    versions = sync_twin(AsyncIndex.versions)
    aversions = async_twin(AsyncIndex.versions)
    reindex = sync_twin(AsyncIndex.reindex)
    areindex = async_twin(AsyncIndex.reindex)
    wait_version = sync_twin(AsyncIndex.wait_version)
    await_version = async_twin(AsyncIndex.wait_version)
    switch = sync_twin(AsyncIndex.switch)
    aswitch = async_twin(AsyncIndex.switch)
    rollback = sync_twin(AsyncIndex.rollback)
    arollback = async_twin(AsyncIndex.rollback)
    drop_version = sync_twin(AsyncIndex.drop_version)
    adrop_version = async_twin(AsyncIndex.drop_version)
    collect = sync_twin(AsyncIndex.collect)
    acollect = async_twin(AsyncIndex.collect)
    set_alias = sync_twin(AsyncIndex.set_alias)
    aset_alias = async_twin(AsyncIndex.set_alias)
    segments = sync_twin(AsyncIndex.segments)
    asegments = async_twin(AsyncIndex.segments)
    compact = sync_twin(AsyncIndex.compact)
    acompact = async_twin(AsyncIndex.compact)
    estimate_recall = sync_twin(AsyncIndex.estimate_recall)
    aestimate_recall = async_twin(AsyncIndex.estimate_recall)
    shards = sync_twin(AsyncIndex.shards)
    ashards = async_twin(AsyncIndex.shards)
    reshard = sync_twin(AsyncIndex.reshard)
    areshard = async_twin(AsyncIndex.reshard)
    promote = sync_twin(AsyncIndex.promote)
    apromote = async_twin(AsyncIndex.promote)
    snapshot = sync_twin(AsyncIndex.snapshot)
    asnapshot = async_twin(AsyncIndex.snapshot)
    progress = sync_twin(AsyncIndex.progress)
    aprogress = async_twin(AsyncIndex.progress)
    export = sync_stream(AsyncIndex.export)
    aexport = async_stream(AsyncIndex.export)
    export_file = sync_twin(AsyncIndex.export_file)
    aexport_file = async_twin(AsyncIndex.export_file)
    import_file = sync_twin(AsyncIndex.import_file)
    aimport_file = async_twin(AsyncIndex.import_file)
