"""One shard: SQLite as truth, and per index version a cache of it that searches read.

Every call that searches runs in one SQLite snapshot and first brings its index to that snapshot's log
position: nothing half-written, nothing deleted. Calls that only read rows skip chunks that are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.admin import SegmentReport
from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.extraction import media_types
from retrieval.reader import Candidates, TermStats
from retrieval.requests import check_document
from retrieval.shard import shard_snapshot
from retrieval.shard.residents import Residents
from retrieval.shard.segments_on_disk import Manifest
from retrieval.truth.store import Store
from retrieval.types import Document, Metadata, Passage, SearchRequest
from retrieval.vectors.recall import RecallEstimate

_POLL_S = 0.002


class Shard:
    """Documents of one shard, searchable. All methods block and may be called from any thread."""

    def __init__(self, folder: Path, config: RetrievalConfig, name: str = "shard-0") -> None:
        """Open or create the shard in `folder`; its versions are opened when first searched.

        Args:
            folder: Holds `shard.sqlite3` and `segments/`; created if missing.
            config: Limits and search settings.
            name: Names the shard in messages and in `SearchRequest.min_seq`.

        Raises:
            IndexUnavailable: Another process has it open, or the file is damaged or not ours.
            StorageFull: The disk has no room for it.
        """
        self.name = name
        self.folder = folder
        self.config = config
        self.store = Store(folder)
        self._residents = Residents(self.store, folder, config)

    def close(self) -> None:
        """Stop compacting and close the store; the indexes are only caches."""
        self._residents.close()
        self.store.close()

    def add(
        self, name: str, data: bytes, library: str, tenant: str, metadata: Metadata | None = None
    ) -> Document:
        """Check a file, store it durably and queue it; see `DocumentStore.add`."""
        check_document(name, data, library, tenant, self.config)
        return self.store.add(tenant, library, name, media_types.sniff(name, data), data, metadata)

    def open_version(self, version: str | None = None) -> None:
        """Have a version in memory, so that its first search does not wait for it.

        Raises:
            UnknownVersion: There is no such version or alias.
        """
        self._residents.open(self.store.version(version))

    def drop_version(self, version: str) -> None:
        """Remove a version that does not answer, from the store and from memory; see `Store.drop_version`."""
        number = self.store.version(version).number
        self.store.drop_version(version)
        self._residents.forget(number)

    def drop_retired(self, versions: Sequence[str]) -> list[str]:
        """Remove those of the versions that are retired and that nothing names; return the ones removed."""
        removed = self.store.drop_retired(versions)
        for version in removed:
            self._residents.forget(version.number)
        return [version.version_id for version in removed]

    def candidates(
        self,
        version: str | None,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None = None,
        deadline_s: float | None = None,
    ) -> list[Candidates]:
        """Return both legs' candidates of each request, all of one moment; see `ShardReader.candidates`.

        Raises:
            UnknownVersion: There is no such version or alias.
            InvalidFilter: A filter is malformed, or compares a field with a value of another type.
            IndexUnavailable: A request's `min_seq` was not reached in time.
        """
        give_up_at = time.monotonic() + (self.config.call_timeout_s if deadline_s is None else deadline_s)
        self.wait_for(self.wanted_seq(requests), give_up_at - time.monotonic())
        with self._residents.at_one_moment(self.store.version(version)) as (index, snapshot):
            return index.candidates(snapshot, requests, vectors_QD, stats, give_up_at)

    def term_stats(self, version: str | None, terms: Sequence[str]) -> TermStats:
        """Return this shard's share of the collection's statistics, over every live chunk."""
        with self._residents.at_one_moment(self.store.version(version)) as (index, snapshot):
            return index.term_stats(snapshot, terms)

    def vectors(self, version: str | None, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[dim] by chunk id, of the chunks this shard holds."""
        with self._residents.at_one_moment(self.store.version(version)) as (index, _):
            return index.vectors_of(chunk_ids)

    def token_codes(self, version: str | None, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        """Return compressed token vectors by chunk id, of the chunks this shard holds."""
        with self.store.snapshot() as snapshot:
            return snapshot.token_codes(snapshot.version(version).number, chunk_ids)

    def passages(
        self, version: str | None, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        """Return passages by chunk id, of the tenant's chunks this shard holds, grown by their neighbours."""
        with self.store.snapshot() as snapshot:
            return snapshot.passages(snapshot.version(version).number, chunk_ids, tenant, before, after)

    def neighbours(
        self, version: str | None, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        """Return the passages around a chunk in its document, itself included, in order."""
        with self.store.snapshot() as snapshot:
            return snapshot.neighbours(snapshot.version(version).number, chunk_id, before, after, tenant)

    def wait_for(self, seq: int, timeout_s: float) -> None:
        """Wait until the log reaches a position.

        Raises:
            IndexUnavailable: It had not after `timeout_s`.
        """
        give_up_at = time.monotonic() + timeout_s
        while seq and (here := self.store.seq()) < seq:
            if time.monotonic() >= give_up_at:
                raise IndexUnavailable(
                    f"shard '{self.name}' is at log position {here:,} and did not reach {seq:,} (min_seq) "
                    f"within {timeout_s:.3g} s; ask again, or without min_seq"
                )
            time.sleep(_POLL_S)

    def compact(self, version: str | None = None) -> Manifest:
        """Merge a version's base segment and what came since into a new one; return its manifest.

        Raises:
            StorageFull: The disk has no room; the old segment goes on answering.
            IndexUnavailable: The folder cannot be written.
        """
        return self._residents.compact(self.store.version(version))

    def segments(self) -> list[SegmentReport]:
        """Return what is held in memory of each version that was searched, as of now."""
        return self._residents.reports(self.name)

    def estimate_recall(self, num_queries: int, version: str | None = None) -> RecallEstimate:
        """Return the recall@10 of searches now, measured on live chunks taken as queries."""
        with self._residents.at_one_moment(self.store.version(version)) as (index, _):
            return index.estimate_recall(num_queries)

    def recall_served(self, version: str | None = None) -> RecallEstimate:
        """Return the recall@10 of the searches answered since the base segment was opened."""
        with self._residents.at_one_moment(self.store.version(version)) as (index, _):
            return index.recall_served()

    def snapshot(self, folder: Path) -> None:
        """Write a copy of the shard at one moment into a new folder; see `shard_snapshot.write`."""
        with self._residents.segments_at_rest() as segments:
            shard_snapshot.write(self.store, segments, folder)

    @classmethod
    def restore(cls, folder: Path, source: Path, config: RetrievalConfig, name: str = "shard-0") -> Shard:
        """Open a shard in a new folder with what `snapshot` wrote into `source`.

        Raises:
            IndexUnavailable: `source` is torn or no snapshot, or `folder` is in use.
            StorageFull: The disk has no room for it.
        """
        shard_snapshot.restore(folder, source)
        return cls(folder, config, name)

    def wanted_seq(self, requests: Sequence[SearchRequest]) -> int:
        """Return the log position that `min_seq` of these requests asks of this shard; 0 for none."""
        return max((request.min_seq.get(self.name, 0) for request in requests if request.min_seq), default=0)


class LocalShard:
    """A `ShardReader` over a shard in this process."""

    def __init__(self, shard: Shard) -> None:
        """Read `shard`, which is its maker's to close."""
        self.shard = shard

    @property
    def name(self) -> str:
        """Return the shard's name."""
        return self.shard.name

    async def term_stats(
        self, version: str, terms: Sequence[str], deadline_s: float | None = None
    ) -> TermStats:
        """Return this shard's share of the collection's statistics."""
        return await asyncio.to_thread(self.shard.term_stats, version, terms)

    async def candidates(
        self,
        version: str,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None,
        deadline_s: float | None = None,
    ) -> list[Candidates]:
        """Return both legs' candidates of each request."""
        patience_s = self.shard.config.call_timeout_s if deadline_s is None else deadline_s
        give_up_at, wanted = time.monotonic() + patience_s, self.shard.wanted_seq(requests)
        # Waited for here, where waiting takes no thread.
        while wanted and time.monotonic() < give_up_at:
            if await asyncio.to_thread(self.shard.store.seq) >= wanted:
                break
            await asyncio.sleep(_POLL_S)
        left_s = max(0.0, give_up_at - time.monotonic())
        return await asyncio.to_thread(self.shard.candidates, version, requests, vectors_QD, stats, left_s)

    async def vectors(self, version: str, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[dim] by chunk id."""
        return await asyncio.to_thread(self.shard.vectors, version, chunk_ids)

    async def token_codes(self, version: str, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        """Return compressed token vectors by chunk id."""
        return await asyncio.to_thread(self.shard.token_codes, version, chunk_ids)

    async def passages(
        self, version: str, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        """Return passages by chunk id, grown by their neighbours."""
        return await asyncio.to_thread(self.shard.passages, version, chunk_ids, tenant, before, after)

    async def neighbours(
        self, version: str, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        """Return the passages around a chunk."""
        return await asyncio.to_thread(self.shard.neighbours, version, chunk_id, before, after, tenant)
