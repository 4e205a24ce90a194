"""An `IndexAdmin` over shards: each operation runs on every shard, and what they report is joined."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.admin import IngestProgress, RecallEstimate, SegmentReport, SnapshotInfo, VersionChange
from retrieval.config import RetrievalConfig
from retrieval.errors import (
    IngestTimeout,
    InvalidDocument,
    InvalidVersion,
    RetrievalError,
    UnknownVersion,
)
from retrieval.restore import FORMAT, INDEX_FILE, shard_folder
from retrieval.sharding.durable_json import write_json
from retrieval.sharding.epochs import Epoch, Reason, version_to_go_back_to, versions_to_collect
from retrieval.sharding.index_views import IndexViews
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.topology import CurrentTopology, all_of, gathered
from retrieval.sharding.version_switch import newest_epoch, switch, tell
from retrieval.types import DEFAULT_TENANT, Record
from retrieval.versions import VersionInfo, VersionState

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_LONG_S = 24 * 3600.0
"""Patience for work whose length nobody knows, such as a compaction."""
_STATES = (VersionState.BUILDING, VersionState.RETIRED, VersionState.READY, VersionState.ACTIVE)
"""From the least to the most complete."""


class RoutedAdmin:
    """Operations on all shards; belongs to one event loop."""

    _topology: CurrentTopology
    _views: IndexViews
    _changing: asyncio.Lock
    _config: RetrievalConfig
    _collecting: set[asyncio.Task[None]]
    on_switch: Callable[[], Awaitable[None]] | None = None
    """Called after every switch through this router, before the caller is told."""

    async def versions(self) -> list[VersionInfo]:
        """Return every version that is kept, the active one first; counts are those of all shards."""
        merged: dict[str, VersionInfo] = {}
        for infos in await all_of(self._topology.now.shards, "versions"):
            for info in infos:
                known = merged.get(info.version_id)
                merged[info.version_id] = info if known is None else _joined(known, info)
        active = (await self._topology.now.shards[0].read("epoch")).version
        return sorted(merged.values(), key=lambda info: (info.version_id != active, info.made_s))

    async def make_version(self, change: VersionChange) -> VersionInfo:
        """Begin to build a version beside the active one; see `IndexAdmin.make_version`."""
        async with self._changing:
            shards = self._topology.now.shards
            infos: list[VersionInfo] = await gathered(
                shard.write("make_version", change, patience_s=_LONG_S) for shard in shards
            )
        await self._look_again()
        made = infos[0]
        for info in infos[1:]:
            made = _joined(made, info)
        return made

    async def wait_version(self, version: str, *, timeout_s: float) -> VersionInfo:
        """Return the version once it holds every document; see `IndexAdmin.wait_version`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            info = await self._version(version)
            if info.state in (VersionState.READY, VersionState.ACTIVE):
                return info
            if loop.time() >= end:
                raise IngestTimeout(
                    f"index version '{info.version_id}' holds {info.num_documents:,} of {info.num_wanted:,} "
                    f"documents after {timeout_s:g} s; it goes on in the background: wait longer or ask again"
                )
            await asyncio.sleep(_POLL_S)

    async def switch(self, version: str) -> VersionInfo:
        """Make a complete version answer on all shards at one epoch; see `IndexAdmin.switch`."""
        async with self._changing:
            shards = self._topology.now.shards
            if len(shards) == 1:
                return await self._switch_one(shards, "switch", version)
            return await self._switch_all(shards, await self._version(version), "switch")

    async def rollback(self) -> VersionInfo:
        """Switch to the version that answered before the one that does; see `IndexAdmin.rollback`."""
        async with self._changing:
            shards = self._topology.now.shards
            if len(shards) == 1:
                return await self._switch_one(shards, "rollback")
            version = version_to_go_back_to(await self.epochs(), await self.versions())
            return await self._switch_all(shards, await self._version(version), "rollback")

    async def _switch_one(self, shards: Sequence[ReplicaSet], method: str, *args: str) -> VersionInfo:
        """Have the one shard switch by itself, and tell its copies."""
        info = await shards[0].write(method, *args, patience_s=_LONG_S)
        await tell(shards, await shards[0].write("epoch"))
        await self._switched()
        return info

    async def _switch_all(
        self, shards: Sequence[ReplicaSet], info: VersionInfo, reason: Reason
    ) -> VersionInfo:
        if info.state is VersionState.RETIRED:
            await all_of(shards, "revive", info.version_id)
            info = await self.wait_version(info.version_id, timeout_s=_LONG_S)
        if info.state is VersionState.BUILDING:
            raise InvalidVersion(
                f"index version '{info.version_id}' holds {info.num_documents:,} of {info.num_wanted:,} "
                "documents; wait until it is ready"
            )
        await switch(shards, info.version_id, reason, entered=self._views.entered)
        await self._look_again()
        await self._switched()
        if reason == "switch":
            self._collecting.add(task := asyncio.create_task(self._collect_beside()))
            task.add_done_callback(self._collecting.discard)
        return await self._version(info.version_id)

    async def _switched(self) -> None:
        if self.on_switch is not None:
            await self.on_switch()

    async def epoch(self) -> Epoch:
        """Return the newest switch, whose version answers."""
        return await newest_epoch(self._topology.now.shards)

    async def epochs(self) -> tuple[Epoch, ...]:
        """Return every switch that was made, oldest first."""
        return await self._topology.now.shards[0].write("epochs")

    async def drop_version(self, version: str) -> None:
        """Remove a version that does not answer; see `IndexAdmin.drop_version`."""
        async with self._changing:
            info = await self._version(version)
            if info.version_id == (await self._topology.now.shards[0].read("epoch")).version:
                raise InvalidVersion(
                    f"index version '{info.version_id}' answers, so it stays; switch to another first"
                )
            await all_of(self._topology.now.shards, "drop_version", info.version_id)
        await self._look_again()

    async def collect(self, keep: int | None = None) -> list[str]:
        """Remove retired versions that are not kept for a rollback; see `IndexAdmin.collect`."""
        async with self._changing:
            shards = self._topology.now.shards
            if len(shards) == 1:
                return await shards[0].write("collect", keep, patience_s=_LONG_S)
            kept = self._config.keep_versions if keep is None else keep
            chosen = versions_to_collect(await self.epochs(), await self.versions(), kept)
            if not chosen:
                return []
            removed = await gathered(
                shard.write("drop_retired", chosen, patience_s=_LONG_S) for shard in shards
            )
        await self._look_again()
        return [version for version in chosen if any(version in names for names in removed)]

    async def _collect_beside(self) -> None:
        """Collect; what cannot be removed now is removed after the next switch."""
        try:
            await self.collect()
        except RetrievalError as error:
            _log.warning("retired index versions are not removed yet: %s", error)

    async def set_alias(self, alias: str, version: str | None) -> None:
        """Let a name point to a version; None removes the name."""
        async with self._changing:
            await all_of(self._topology.now.shards, "set_alias", alias, version)
        await self._look_again()

    async def segments(self) -> list[SegmentReport]:
        """Return what each shard holds in memory of each version."""
        return [report for found in await all_of(self._topology.now.shards, "segments") for report in found]

    async def compact(self, version: str | None = None) -> list[SegmentReport]:
        """Build new base segments without dead rows and return what is held then."""
        shards = self._topology.now.shards
        lists = await gathered(shard.write("compact", version, patience_s=_LONG_S) for shard in shards)
        return [report for found in lists for report in found]

    async def estimate_recall(self, num_queries: int = 200, *, version: str | None = None) -> RecallEstimate:
        """Return an estimate over all shards; its interval is as wide as that of the shard known least."""
        shards = self._topology.now.shards
        each = -(-num_queries // len(shards))
        found: Sequence[RecallEstimate] = await gathered(
            shard.write("estimate_recall", each, version=version, patience_s=_LONG_S) for shard in shards
        )
        total = sum(one.num_queries for one in found)
        if not total or len(found) == 1:
            return found[0]

        def pooled(name: str) -> float:
            return sum(getattr(one, name) * one.num_queries for one in found) / total

        low, high, floor = pooled("low"), pooled("high"), found[0].floor
        return RecallEstimate(pooled("recall"), low, high, total, floor, any(one.alarm for one in found))

    async def progress(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> IngestProgress:
        """Return how far ingestion is; the shards work side by side, so the slowest decides."""
        shards = self._topology.now.shards
        found: list[IngestProgress] = await all_of(shards, "progress", library=library, tenant=tenant)
        paces = [one.chunks_per_s for one in found if one.chunks_per_s is not None]
        left = [one.remaining_s for one in found if one.num_under_way]
        return IngestProgress(
            num_documents=sum(one.num_documents for one in found),
            num_ready=sum(one.num_ready for one in found),
            num_failed=sum(one.num_failed for one in found),
            num_under_way=sum(one.num_under_way for one in found),
            chunks_per_s=sum(paces) if paces else None,
            remaining_s=None
            if None in left
            else max((item for item in left if item is not None), default=0.0),
        )

    async def snapshot(self, folder: Path) -> SnapshotInfo:
        """Copy the whole index, as of one moment a shard, into an empty or absent folder."""
        shards = self._topology.now.shards
        if len(shards) == 1:
            return await shards[0].write("snapshot", folder, patience_s=_LONG_S)
        if await asyncio.to_thread(_holds_something, folder):
            raise InvalidDocument(f"the snapshot folder '{folder}' is not empty; give a new one")
        async with self._changing:
            try:
                infos: list[SnapshotInfo] = await gathered(
                    shard.write("snapshot", shard_folder(folder, number), patience_s=_LONG_S)
                    for number, shard in enumerate(shards)
                )
                values = {"format": FORMAT, "num_shards": len(shards)}
                await asyncio.to_thread(write_json, folder / INDEX_FILE, values)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                raise
        seqs = {name: seq for info in infos for name, seq in info.seqs.items()}
        return SnapshotInfo(folder, seqs, sum(info.num_bytes for info in infos))

    async def export(
        self, *, library: str | None = None, tenant: str = DEFAULT_TENANT, batch: int = 256
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield every searchable chunk of the active version as a record with its vector, in batches."""
        for shard in self._topology.now.shards:
            after: object = None
            while True:
                records, after = await shard.write("export_page", after, library, tenant, batch)
                if records:
                    yield records
                if after is None:
                    break

    async def _look_again(self) -> None:
        """Have searches over several shards know what has just changed; one shard knows by itself."""
        if len(self._topology.now.shards) > 1:
            await self._views.refresh()

    async def _version(self, name: str) -> VersionInfo:
        """Return a version by id or alias."""
        infos = await self.versions()
        for info in infos:
            if name == info.version_id or name in info.aliases:
                return info
        here = ", ".join(f"'{info.version_id}'" for info in infos)
        raise UnknownVersion(f"no index version or alias '{name}'; there are {here}")


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _joined(one: VersionInfo, other: VersionInfo) -> VersionInfo:
    """Return a version's state over two shards: as complete as the less complete one."""
    return replace(
        one,
        state=min(one.state, other.state, key=_STATES.index),
        num_documents=one.num_documents + other.num_documents,
        num_wanted=one.num_wanted + other.num_wanted,
        num_chunks=one.num_chunks + other.num_chunks,
        made_s=min(one.made_s, other.made_s),
        aliases=one.aliases
        if one.aliases == other.aliases
        else tuple(sorted({*one.aliases} & {*other.aliases})),
    )
