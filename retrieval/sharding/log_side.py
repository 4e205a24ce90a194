"""A shard's side of copying: what replicas pull, what a reshard reads, and what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from retrieval.export import export_page
from retrieval.sharding.follower import BATCH_OPS
from retrieval.sharding.shard_copy import Changes
from retrieval.truth.oplog import Batch, WholeDocument
from retrieval.truth.registry import NamedVersion
from retrieval.truth.store import Store
from retrieval.types import Record
from retrieval.versions import VersionInfo, VersionState

_POLL_S = 0.02


class LogSide:
    """Reads and writes whole documents of one copy of a shard."""

    def __init__(self, store: Store) -> None:
        """Use the copy's truth."""
        self._store = store

    async def seq(self) -> int:
        """Return the log's last position."""
        return await asyncio.to_thread(self._store.seq)

    async def changes_since(
        self, seq: int, mark: str | None, wait_s: float = 0.0, limit: int = BATCH_OPS
    ) -> Changes:
        """Return the next changes after a log position, waiting for some for a while.

        Args:
            seq: The log position.
            mark: What the asker's log holds there; None when it has no log of its own.
            wait_s: Longest wait while there is nothing new.
            limit: Most changes returned.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        changes = await asyncio.to_thread(self._changes, seq, mark, limit)
        while not changes.diverged and not changes.batch.ops and loop.time() < end:
            await asyncio.sleep(_POLL_S)
            if self._store.seq() != seq or loop.time() >= end:
                changes = await asyncio.to_thread(self._changes, seq, mark, limit)
        return changes

    async def version_rows(self) -> list[VersionInfo]:
        """Return the versions a new shard of this index must have, the active one first."""
        infos = await asyncio.to_thread(self._store.versions)
        return sorted(infos, key=lambda info: info.state is not VersionState.ACTIVE)

    async def named_versions(self) -> list[NamedVersion]:
        """Return what every version is and is called; routers ask for it each second."""
        return await asyncio.to_thread(self._store.named_versions)

    async def make_versions(self, infos: Sequence[VersionInfo]) -> None:
        """Have these versions in an empty shard, under their states and aliases."""
        await asyncio.to_thread(self._make_versions, infos)

    async def adopt(self, whole: Sequence[WholeDocument], gone: Sequence[str]) -> None:
        """Take in documents of another shard, and forget those that are gone there."""
        await asyncio.to_thread(self._store.adopt, whole, gone)

    async def count(self) -> list[int]:
        """Return documents, and documents and chunks of every version, for comparison with another side."""
        return await asyncio.to_thread(self._count)

    async def export_page(
        self, after: tuple[str, int] | None, library: str | None, tenant: str, limit: int
    ) -> tuple[Sequence[Record], tuple[str, int] | None]:
        """Return records after a place, and the next place; None begins, and ends.

        A place names its index version, so that pages of two are never mixed.
        """
        return await asyncio.to_thread(self._export_page, after, library, tenant, limit)

    def _export_page(
        self, after: tuple[str, int] | None, library: str | None, tenant: str, limit: int
    ) -> tuple[Sequence[Record], tuple[str, int] | None]:
        version = self._store.version(after[0] if after else None)
        with self._store.snapshot() as snapshot:
            records, row_id = export_page(
                snapshot, version.number, after[1] if after else 0, library, tenant, limit
            )
        return records, None if row_id is None else (version.version_id, row_id)

    def _changes(self, seq: int, mark: str | None, limit: int) -> Changes:
        if mark is not None:
            with self._store.snapshot() as snapshot:
                if snapshot.mark(seq) != mark:
                    empty = Batch(seq, seq, [], [], [], [], [])
                    return Changes(empty, diverged=True)
        return Changes(self._store.changes_since(seq, limit))

    def _make_versions(self, infos: Sequence[VersionInfo]) -> None:
        for info in infos:
            self._store.make_version(info.spec)
        for info in infos:
            if info.state is not VersionState.ACTIVE:
                self._store.set_state(info.version_id, info.state)
            for alias in info.aliases:
                self._store.set_alias(alias, info.version_id)

    def _count(self) -> list[int]:
        infos = sorted(self._store.versions(), key=lambda info: info.version_id)
        wanted = [infos[0].num_wanted] if infos else []
        return wanted + [value for info in infos for value in (info.num_documents, info.num_chunks)]
