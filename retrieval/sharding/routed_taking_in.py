"""Taking in documents read elsewhere, each by the shard it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.ingestion.taking_in import ReadDocument
from retrieval.sharding.topology import CurrentTopology, Topology, gathered
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, Document, Metadata


class RoutedTakingIn:
    """The way of documents that were read, cut and embedded outside the shards; belongs to one event loop."""

    _topology: CurrentTopology

    async def take_in(
        self,
        read: Sequence[ReadDocument],
        version_id: str,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> list[Document]:
        """Store documents, one transaction a shard, and return them in order; see `taking_in.take_in`.

        Raises:
            InvalidMetadata: A field cannot be stored.
            IndexUnavailable: A shard does not answer; those of other shards may be stored.
            StorageFull: The disk of a shard has no room; those of other shards may be stored.
        """
        document_ids = [document_id_of(tenant, library, one.name) for one in read]

        async def write(now: Topology) -> list[Document]:
            groups = now.by_shard(document_ids)
            lists = await gathered(
                now.shards[shard].write(
                    "take_in",
                    [read[i] for i in positions],
                    version_id,
                    library=library,
                    tenant=tenant,
                    metadata=metadata,
                )
                for shard, positions in groups.items()
            )
            found: dict[int, Document] = {}
            for positions, taken in zip(groups.values(), lists, strict=True):
                found |= dict(zip(positions, taken, strict=True))
            return [found[position] for position in range(len(read))]

        return await self._topology.using(write)
