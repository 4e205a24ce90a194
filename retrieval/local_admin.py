"""The `IndexAdmin` half of `LocalRetrieval`: versions, compaction, snapshots, progress, export."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from retrieval.admin import IngestProgress, RecallEstimate, SegmentReport, SnapshotInfo, VersionChange
from retrieval.errors import (
    IngestTimeout,
    InvalidDocument,
    InvalidVersion,
    RetrievalError,
    UnknownVersion,
)
from retrieval.export import export_page
from retrieval.ingestion.embedders import Embedders
from retrieval.ingestion.ingest import Ingestor
from retrieval.metrics import ShardLoad
from retrieval.ranking.view import IndexView
from retrieval.shard.shard import Shard
from retrieval.sharding.epochs import (
    Epoch,
    EpochLedger,
    Reason,
    version_to_go_back_to,
    versions_to_collect,
)
from retrieval.sharding.write_gate import WriteGate
from retrieval.truth.oplog import seq_of
from retrieval.truth.store import DATABASE_NAME, Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import DEFAULT_TENANT, Record
from retrieval.versions import VersionInfo, VersionState

_log = logging.getLogger(__name__)

_POLL_S = 0.02
_SWITCH_TRIES = 20
_LEASE_S = 600.0
"""Longest time records wait for a switch to take in what came last."""


class LocalAdmin:
    """Operations on the index of one shard in this process. Belongs to one event loop."""

    _shard: Shard
    _store: Store
    _embedders: Embedders
    _ingestor: Ingestor
    _gate: WriteGate
    _ledger: EpochLedger
    _active: IndexView | None
    _auto_switch: bool
    _switching: bool
    _collecting: asyncio.Task[None] | None

    async def versions(self) -> list[VersionInfo]:
        """Return every version that is kept, the active one first."""
        found = await asyncio.to_thread(self._store.versions)
        return sorted(found, key=lambda version: version.state is not VersionState.ACTIVE)

    async def make_version(self, change: VersionChange) -> VersionInfo:
        """Begin to build a version beside the active one; see `IndexAdmin.make_version`."""
        active = await asyncio.to_thread(self._store.version)
        spec = await self._embedders.changed(active.spec, change)
        made = await asyncio.to_thread(self._store.make_version, spec)
        if made.state is VersionState.RETIRED:
            await asyncio.to_thread(self._store.set_state, made.version_id, VersionState.BUILDING)
        self._ingestor.notify(versions=True)
        return await self._info(made.version_id)

    async def wait_version(self, version: str, *, timeout_s: float) -> VersionInfo:
        """Return the version once it holds every document; see `IndexAdmin.wait_version`."""
        deadline = time.monotonic() + timeout_s
        while True:
            stored = await asyncio.to_thread(self._store.version, version)
            if stored.state in (VersionState.READY, VersionState.ACTIVE):
                return await self._info(stored.version_id)
            if time.monotonic() >= deadline:
                info = await self._info(stored.version_id)
                raise IngestTimeout(
                    f"index version '{info.version_id}' is {info.state} and holds {info.num_documents:,} of "
                    f"{info.num_wanted:,} documents after {timeout_s:g} s; wait longer or ask again"
                )
            await asyncio.sleep(_POLL_S)

    async def switch(self, version: str) -> VersionInfo:
        """Make a complete version the one that answers; see `IndexAdmin.switch`.

        Records sent meanwhile wait for the moment it takes, so a switch under load loses nothing.
        """
        return await self._switch(version, "switch")

    async def rollback(self) -> VersionInfo:
        """Switch to the version that answered before the one that does; see `IndexAdmin.rollback`."""
        return await self._switch(
            version_to_go_back_to(self._ledger.history, await self.versions()), "rollback"
        )

    async def _switch(self, version: str, reason: Reason) -> VersionInfo:
        stored = await asyncio.to_thread(self._store.version, version)
        if stored.state is VersionState.BUILDING:
            info = await self._info(stored.version_id)
            raise InvalidVersion(
                f"index version '{info.version_id}' holds {info.num_documents:,} of {info.num_wanted:,} "
                "documents; wait until it is ready"
            )
        if stored.state is not VersionState.ACTIVE:
            await self._embedders.try_load(stored.spec)
            if stored.state is VersionState.RETIRED:
                await asyncio.to_thread(self._store.set_state, stored.version_id, VersionState.BUILDING)
            async with self._ingestor.caught_up():
                await self._switch_now(stored.version_id, reason)
        return await self._info(stored.version_id)

    async def drop_version(self, version: str) -> None:
        """Remove a version that does not answer; see `IndexAdmin.drop_version`."""
        async with self._ingestor.caught_up():
            await asyncio.to_thread(self._shard.drop_version, version)

    async def collect(self, keep: int | None = None) -> list[str]:
        """Remove retired versions that are not kept for a rollback; see `IndexAdmin.collect`."""
        kept = self._shard.config.keep_versions if keep is None else keep
        return await self.drop_retired(versions_to_collect(self._ledger.history, await self.versions(), kept))

    async def drop_retired(self, versions: Sequence[str]) -> list[str]:
        """Remove those of the versions that are retired and that nothing names; return the ones removed."""
        return await asyncio.to_thread(self._shard.drop_retired, versions) if versions else []

    async def set_alias(self, alias: str, version: str | None) -> None:
        """Let a name point to a version; None removes the name."""
        await asyncio.to_thread(self._store.set_alias, alias, version)

    async def segments(self) -> list[SegmentReport]:
        """Return what is held in memory of each version."""
        return await asyncio.to_thread(self._shard.segments)

    async def load(self) -> ShardLoad:
        """Return what is held in memory and what waits for ingestion, for metrics."""
        segments, num_under_way = await asyncio.gather(
            self.segments(), asyncio.to_thread(self._store.num_under_way)
        )
        return ShardLoad(segments, num_under_way)

    async def compact(self, version: str | None = None) -> list[SegmentReport]:
        """Build a new base segment without dead rows and return what is held then."""
        await asyncio.to_thread(self._shard.compact, version)
        return await self.segments()

    async def estimate_recall(self, num_queries: int = 200, *, version: str | None = None) -> RecallEstimate:
        """Return an estimate from exact search; see `IndexAdmin.estimate_recall`."""
        found = await asyncio.to_thread(self._shard.estimate_recall, num_queries, version)
        floor = self._shard.config.recall_floor
        return RecallEstimate(found.recall, found.low, found.high, found.num_queries, floor, found.alarm)

    async def snapshot(self, folder: Path) -> SnapshotInfo:
        """Copy the whole index, as of one moment, into an empty or absent folder."""
        return await asyncio.to_thread(self._copy, folder)

    async def progress(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> IngestProgress:
        """Return how far ingestion is."""
        queue = await asyncio.to_thread(self._store.queue, library, tenant)
        pace, under_way = self._ingestor.pace, self._ingestor.pace.under_way
        left = queue.bytes_ahead
        if under_way is not None and under_way.num_chunks:
            left -= under_way.num_bytes * under_way.chunks_done // under_way.num_chunks
        return IngestProgress(
            num_documents=queue.num_documents,
            num_ready=queue.num_ready,
            num_failed=queue.num_failed,
            num_under_way=queue.num_under_way,
            chunks_per_s=pace.chunks_per_s(),
            remaining_s=pace.remaining_s(max(left, 0)),
        )

    async def export(
        self, *, library: str | None = None, tenant: str = DEFAULT_TENANT, batch: int = 256
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield every searchable chunk of the active version as a record with its vector, in batches."""
        number = (await asyncio.to_thread(self._store.version)).number
        after: int | None = 0
        while after is not None:
            records, after = await asyncio.to_thread(self._export_page, number, after, library, tenant, batch)
            if records:
                yield records

    def _copy(self, folder: Path) -> SnapshotInfo:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidDocument(f"the snapshot folder '{folder}' holds something; give a new one")
        self._shard.snapshot(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        (database,) = [path for path in files if path.name == DATABASE_NAME]
        num_bytes = sum(path.stat().st_size for path in files)
        return SnapshotInfo(folder, {self._shard.name: seq_of(database)}, num_bytes)

    def _export_page(
        self, number: int, after: int, library: str | None, tenant: str, batch: int
    ) -> tuple[Sequence[Record], int | None]:
        with self._store.snapshot() as snapshot:
            return export_page(snapshot, number, after, library, tenant, batch)

    async def _version_complete(self, version: StoredVersion) -> None:
        """Switch to the version that the configuration asks for, once it lacks nothing."""
        if self._switching or not self._auto_switch:
            return
        if await asyncio.to_thread(self._store.target_version) == version.version_id:
            await self._switch_now(version.version_id, "switch")

    async def record_active(self, reason: Reason = "switch") -> None:
        """Have the record of switches name the active version; nothing happens where it does.

        Only where this shard is the whole index: over several, their coordinator writes the record.
        """
        current = self._ledger.current
        active = await asyncio.to_thread(self._store.version)
        if current is None:
            await asyncio.to_thread(self._ledger.commit, Epoch(1, active.version_id, "first", time.time()))
        elif active.version_id != current.version:
            epoch = Epoch(current.epoch + 1, active.version_id, reason, time.time())
            await asyncio.to_thread(self._ledger.commit, epoch)

    async def _switch_now(self, version_id: str, reason: Reason) -> None:
        """Switch while building is held: let the version take in what came last, with no record under way.

        A document may still become ready between the two steps; then there is one more to take in.
        """
        self._switching = True
        try:
            await self._gate.shut(_LEASE_S)
            for left in reversed(range(_SWITCH_TRIES)):
                await self._ingestor.catch_up()
                try:
                    await asyncio.to_thread(self._store.set_state, version_id, VersionState.ACTIVE)
                    break
                except InvalidVersion:
                    if not left:
                        raise
            self._active = None
            await self.record_active(reason)
            if reason == "switch":
                self._collecting = asyncio.create_task(self._collect_beside(self._collecting))
        finally:
            self._gate.open()
            self._switching = False
        self._ingestor.notify(versions=True)

    async def _collect_beside(self, before: asyncio.Task[None] | None) -> None:
        """Collect; what cannot be removed now is removed after the next switch."""
        if before is not None:
            await before
        try:
            await self.collect()
        except RetrievalError as error:
            _log.warning("retired index versions are not removed yet: %s", error)

    async def _info(self, version_id: str) -> VersionInfo:
        for info in await asyncio.to_thread(self._store.versions):
            if info.version_id == version_id:
                return info
        raise UnknownVersion(f"index version {version_id!r} was dropped meanwhile")
