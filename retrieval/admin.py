"""What an operator asks of an index: versions, compaction, snapshots, recall, progress, export.

`LocalRetrieval` and `ActorRetrieval` answer this protocol beside `Retriever` and `DocumentStore`; the SDK,
the command line and HTTP speak it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retrieval.sharding.placement import Placement
from retrieval.types import DEFAULT_TENANT, Record
from retrieval.versions import IndexKind, TokenCodec, VectorCodec, VersionInfo


@dataclass(frozen=True, slots=True)
class VersionChange:
    """How a new index version differs from the active one; None keeps what that has."""

    embedder: str | None = None
    """`packaged`, a folder of a sentence-transformers model, or a model id."""
    chunk_tokens: int | None = None
    """Longest chunk in tokens."""
    chunk_overlap_tokens: int | None = None
    """Longest overlap of neighbours in tokens."""
    dim: int | None = None
    """Numbers kept of each vector (Matryoshka); 0 for all."""
    vectors: VectorCodec | None = None
    """How vectors are stored."""
    tokens: TokenCodec | None = None
    """How token vectors are stored."""
    kind: IndexKind | None = None
    """The base segment's structure."""


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far the ingestion of a library is."""

    num_documents: int
    """Documents of the library."""
    num_ready: int
    """Those that searches find."""
    num_failed: int
    """Those that failed; each says why."""
    num_under_way: int
    """Those queued or being worked on."""
    chunks_per_s: float | None
    """Chunks made searchable a second lately; None before any was."""
    remaining_s: float | None
    """Estimated seconds until nothing is under way; None where nothing can be said yet."""


@dataclass(frozen=True, slots=True)
class RecallEstimate:
    """How many of the true nearest chunks an index finds, from exact search on a sample of queries."""

    recall: float
    """Share of the true first 10 that were found."""
    low: float
    """Lower bound of the 95 % interval (Wilson)."""
    high: float
    """Upper bound."""
    num_queries: int
    """Queries it rests on."""
    floor: float
    """Below this the alarm is raised and the next compaction tunes anew."""
    alarm: bool
    """Whether `high` lies below `floor`."""


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One shard's part of an index version, as it is held in memory."""

    shard: str
    """The shard."""
    version_id: str
    """The version."""
    kind: IndexKind
    """Structure of the base segment."""
    seq: int
    """Log position it reflects."""
    num_rows: int
    """Live chunks."""
    num_base_rows: int
    """Rows of the base segment, dead ones included."""
    num_delta_rows: int
    """Rows newer than the base segment, searched exactly."""
    num_dead_rows: int
    """Deleted or replaced rows that the next compaction drops."""
    resident_bytes: int
    """Memory it holds, mapped files left out."""
    built_recall: float | None
    """recall@10 measured when the base was built; None for exact ones."""
    num_compactions: int = 0
    """Base segments built since the shard was opened."""
    served_recall: RecallEstimate | None = None
    """recall@10 that searches were served with since the base was opened; None before any was repeated."""


@dataclass(frozen=True, slots=True)
class ShardCopyReport:
    """Where one copy of one shard stands."""

    shard: int
    """Number of the shard."""
    name: str
    """The shard's name."""
    slot: int
    """Number of the copy among the shard's."""
    is_primary: bool
    """Whether it takes the writes."""
    seq: int | None
    """Its log position; None where it does not answer."""
    error: str | None
    """Why it does not answer."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A copy of the whole index, taken while it answered."""

    folder: Path
    """Where it is, on the node of the shards."""
    seqs: Mapping[str, int]
    """By shard: the log position it holds."""
    num_bytes: int
    """Size of its files."""


class IndexAdmin(Protocol):
    """Operations on an index. Version arguments take an id or an alias."""

    async def versions(self) -> list[VersionInfo]:
        """Return every version that is kept, the active one first."""
        ...

    async def make_version(self, change: VersionChange) -> VersionInfo:
        """Begin to build a version beside the active one and return it; equal specs return the one there is.

        Raises:
            InvalidVersion: The embedder cannot be loaded, or a value does not fit it.
        """
        ...

    async def wait_version(self, version: str, *, timeout_s: float) -> VersionInfo:
        """Return the version once it holds every document.

        Raises:
            UnknownVersion: There is none of this name.
            IngestTimeout: It is still being built; the message says how far it is.
        """
        ...

    async def switch(self, version: str) -> VersionInfo:
        """Make a complete version the one that answers, on all shards at one epoch.

        A retired version is caught up first.

        Raises:
            UnknownVersion: There is none of this name.
            InvalidVersion: It is not complete yet; wait for it.
        """
        ...

    async def rollback(self) -> VersionInfo:
        """Switch to the version that answered before the one that does; a second call goes further back.

        Raises:
            InvalidVersion: No other version that is still kept answered before.
        """
        ...

    async def drop_version(self, version: str) -> None:
        """Remove a version that does not answer, with everything it stored.

        Raises:
            UnknownVersion: There is none of this name.
            InvalidVersion: It answers now, or an alias names it.
        """
        ...

    async def collect(self, keep: int | None = None) -> list[str]:
        """Remove retired versions, with everything they stored, and return their ids.

        Those that rollbacks lead to are kept first. A version that answers, is built, is ready, is to be
        switched to or has an alias is never removed. A switch does this too, in the background.

        Args:
            keep: How many retired versions stay; None for `RetrievalConfig.keep_versions`.
        """
        ...

    async def set_alias(self, alias: str, version: str | None) -> None:
        """Let a name point to a version; None removes the name.

        Raises:
            UnknownVersion: There is no such version.
            InvalidVersion: The name is not plain, or is a version's.
        """
        ...

    async def segments(self) -> list[SegmentReport]:
        """Return what each shard holds in memory of each version."""
        ...

    async def compact(self, version: str | None = None) -> list[SegmentReport]:
        """Build new base segments without dead rows and return what is held then."""
        ...

    async def estimate_recall(self, num_queries: int = 200, *, version: str | None = None) -> RecallEstimate:
        """Return an estimate from exact search on queries asked lately, or on stored chunks where too few.

        Queries asked since the base segment was opened serve where there are `num_queries` of them.
        """
        ...

    async def snapshot(self, folder: Path) -> SnapshotInfo:
        """Copy the whole index, as of one moment a shard, into an empty or absent folder.

        Raises:
            InvalidDocument: The folder holds something.
            StorageFull: The disk has no room; the folder is removed again.
        """
        ...

    async def progress(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> IngestProgress:
        """Return how far ingestion is."""
        ...

    def export(
        self, *, library: str | None = None, tenant: str = DEFAULT_TENANT, batch: int = 256
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield every searchable chunk of the active version as a record with its vector, in batches."""
        ...


class ShardedAdmin(IndexAdmin, Protocol):
    """Operations on an index that is spread over shards, and the shards' copies."""

    async def copies(self) -> list[ShardCopyReport]:
        """Return where every copy of every shard stands."""
        ...

    async def reshard(self, num_shards: int) -> Placement:
        """Spread the documents over another number of shards while they answer, and return the new map.

        Raises:
            InvalidVersion: `num_shards` is out of its bounds, or another change is under way.
            IndexUnavailable: A shard does not answer; the shards before go on as they were.
            StorageFull: The disk has no room for the copy; the shards before go on as they were.
        """
        ...

    async def promote(self, shard: int, slot: int | None = None) -> Placement:
        """Let another copy of a shard take its writes, for a primary that is gone for good.

        Args:
            shard: Number of the shard.
            slot: The copy; None for the one that is furthest.

        Raises:
            InvalidVersion: There is no such shard or copy.
            IndexUnavailable: No other copy answers, or the copy lacks writes that were acknowledged.
        """
        ...
