"""One index of several shards as a `Retriever`, a `DocumentStore` and an `IndexAdmin`.

The same router works over shards in this process and over actors: it knows only their copies, and a host that
opens and closes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from retrieval.admin import ShardCopyReport
from retrieval.config import MAX_SHARDS, RetrievalConfig
from retrieval.errors import IndexUnavailable, InvalidVersion, RetrievalError
from retrieval.ingestion.embedders import Embedders
from retrieval.sharding.index_views import IndexViews
from retrieval.sharding.placement import Placement, write_placement
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.reshard import Reshard
from retrieval.sharding.routed_admin import RoutedAdmin
from retrieval.sharding.routed_documents import RoutedDocuments
from retrieval.sharding.routed_graph import RoutedGraph
from retrieval.sharding.routed_search import RoutedSearch
from retrieval.sharding.routed_taking_in import RoutedTakingIn
from retrieval.sharding.shard_copy import Call, ShardCopy
from retrieval.sharding.topology import CurrentTopology, Topology, all_of, gathered
from retrieval.sharding.version_switch import settle
from retrieval.types import DEFAULT_TENANT, Passage
from retrieval.versions import VersionState

_log = logging.getLogger(__name__)

_DRAIN_S = 30.0
_PROMOTE_S = 30.0
_STATUS_S = 5.0
_FOLLOW_S = 1.0


class Hosts(Protocol):
    """Opens and closes the copies of an index's shards."""

    async def open(self, placement: Placement, *, answering: bool) -> list[list[ShardCopy]]:
        """Return every copy of every shard, by shard and slot.

        Args:
            placement: The map whose shards are wanted.
            answering: False for shards that are still being filled: they hold no version of their own yet and
                do not ingest.
        """
        ...

    async def placed(self, placement: Placement) -> None:
        """Take note of a map that was made durable."""
        ...

    async def close(self, placement: Placement, *, remove: bool) -> None:
        """Close the copies of a map that is not used any more, and remove their files if asked to."""
        ...


class Router(RoutedDocuments, RoutedTakingIn, RoutedSearch, RoutedAdmin):
    """All shards of one index; belongs to one event loop."""

    def __init__(
        self,
        root: Path,
        config: RetrievalConfig,
        hosts: Hosts,
        topology: Topology,
        embedders: Embedders,
    ) -> None:
        """Join shards.

        Args:
            root: Folder of the map of shards.
            config: Limits, patience and batching.
            hosts: Opens more shards for a reshard.
            topology: The shards that answer.
            embedders: Those of this process, for queries over several shards.
        """
        self._root = root
        self._hosts = hosts
        self._changing = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._collecting: set[asyncio.Task[None]] = set()
        current = CurrentTopology(topology)
        self.graph = RoutedGraph(current, config)
        """The entities that chunks name, and how they are connected."""
        self._start_searching(current, config, IndexViews(current, embedders))

    @property
    def placement(self) -> Placement:
        """Return the map of documents to shards."""
        return self._topology.now.placement

    @property
    def shards(self) -> tuple[ReplicaSet, ...]:
        """Return the shards that answer."""
        return self._topology.now.shards

    async def ready(self) -> dict[str, float]:
        """Bring every shard to the version that answers and return seconds by stage of their start.

        A shard that does not answer is left out of searches, and named by them.
        """
        now = self._topology.now
        timings = await asyncio.gather(
            *(shard.write("ready") for shard in now.shards), return_exceptions=True
        )
        found: dict[str, float] = {}
        for shard, timing in zip(now.shards, timings, strict=True):
            if isinstance(timing, dict):
                for stage, seconds in timing.items():
                    found[stage] = max(found.get(stage, 0.0), seconds)
            elif len(now.shards) == 1 or not isinstance(timing, IndexUnavailable):
                raise timing
            else:
                _log.warning("%s is not there: %s", shard.name, timing)
        if len(now.shards) > 1:
            await settle(now.shards)
            await self._views.refresh()
            self._following = self._following or asyncio.create_task(self._follow_configuration())
        return found

    async def copies(self) -> list[ShardCopyReport]:
        """Return where every copy of every shard stands."""

        async def report(number: int, shard: ReplicaSet, slot: int) -> ShardCopyReport:
            seq, cause = None, None
            try:
                seq = (await shard.call_slot(slot, Call("seq"), _STATUS_S)).value
            except IndexUnavailable as error:
                cause = str(error)
            return ShardCopyReport(number, shard.name, slot, slot == shard.primary, seq, cause)

        return await asyncio.gather(
            *(report(number, shard, slot) for number, shard in enumerate(self.shards) for slot in shard.slots)
        )

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; None where deleted or not the tenant's."""
        now = self._topology.now
        if len(now.shards) > 1:
            await self._views.ensure()
        version = None if len(now.shards) == 1 else self._views.view_of(None).version
        groups = now.by_shard(chunk_id.partition(":")[0] for chunk_id in chunk_ids)
        found: dict[str, Passage] = {}
        for part in await gathered(
            now.shards[shard].passages(version, [chunk_ids[i] for i in positions], tenant)
            for shard, positions in groups.items()
        ):
            found |= part
        return [found.get(chunk_id) for chunk_id in chunk_ids]

    async def reshard(self, num_shards: int) -> Placement:
        """Spread the documents over another number of shards; see `ShardedAdmin.reshard`."""
        if not 1 <= num_shards <= MAX_SHARDS:
            raise InvalidVersion(f"num_shards must be from 1 to {MAX_SHARDS:,}; got {num_shards}")
        if self._changing.locked():
            raise InvalidVersion("a reshard or a promotion is under way; wait until it has ended")
        async with self._changing:
            if any(info.state is VersionState.BUILDING for info in await self.versions()):
                raise InvalidVersion("an index version is being built; reshard when it is ready, or drop it")
            before = self._topology.now
            placement = Placement(num_shards, before.placement.generation + 1)
            copies = await self._hosts.open(placement, answering=False)
            try:
                after = topology_of(placement, copies, self._config)
                await self._prepare(before, after)
                await Reshard(before, after).run(lambda: self._hand_over(after))
            except BaseException:
                await self._hosts.close(placement, remove=True)
                raise
            for shard in after.shards:
                for slot in shard.slots:
                    await shard.call_slot(slot, Call("set_primary", (shard.primary,)))
            await self._drain(before)
            await self._hosts.close(before.placement, remove=True)
            return placement

    async def promote(self, shard: int, slot: int | None = None) -> Placement:
        """Let another copy of a shard take its writes; see `ShardedAdmin.promote`."""
        async with self._changing:
            now = self._topology.now
            if not 0 <= shard < len(now.shards):
                raise InvalidVersion(f"there is no shard {shard}; they are 0 to {len(now.shards) - 1}")
            copies = now.shards[shard]
            if slot is not None and slot not in copies.slots:
                raise InvalidVersion(
                    f"{copies.name} has no copy {slot}; it has {len(copies.slots)}, from 0 on"
                )
            others = [other for other in copies.slots if other != copies.primary and slot in (None, other)]
            answers = await asyncio.gather(
                *(copies.call_slot(other, Call("seq"), _PROMOTE_S) for other in others),
                return_exceptions=True,
            )
            seqs = {
                other: answer.value
                for other, answer in zip(others, answers, strict=True)
                if not isinstance(answer, BaseException)
            }
            if not seqs:
                raise IndexUnavailable(f"{copies.name} has no other copy that answers; nothing was changed")
            best = max(seqs, key=lambda other: seqs[other])
            if seqs[best] < copies.floor:
                raise IndexUnavailable(
                    f"copy {best} of {copies.name} is at log position {seqs[best]:,}, {copies.floor:,} was "
                    "acknowledged; bring the primary back, or restore a snapshot"
                )
            placement = now.placement.promoted(shard, best)
            await asyncio.to_thread(write_placement, self._root, placement)
            await self._hosts.placed(placement)
            copies.promote(best)
            self._topology.replace(Topology(placement, now.shards))
            for other in sorted(copies.slots, key=lambda number: number != best):
                try:
                    await copies.call_slot(other, Call("set_primary", (best,)), _PROMOTE_S)
                except IndexUnavailable as error:
                    _log.warning("copy %d of %s is told later: %s", other, copies.name, error)
                    if other == best:
                        raise
            return placement

    async def aclose(self) -> None:
        """End the searches under way and close every shard."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        await asyncio.gather(*self._collecting)
        await self._stop_searching()
        await self._hosts.close(self._topology.now.placement, remove=False)

    async def _follow_configuration(self) -> None:
        """Switch to the version that a changed configuration asks for, once every shard holds it whole."""
        while True:
            try:
                targets = await all_of(self.shards, "target")
                if not any(targets):
                    return
                if targets[0] is not None and (await self._version(targets[0])).state is VersionState.READY:
                    await self.switch(targets[0])
            except RetrievalError as error:
                _log.warning("the configured index version is not switched to yet: %s", error)
            await asyncio.sleep(_FOLLOW_S)

    async def _prepare(self, before: Topology, after: Topology) -> None:
        """Give empty shards the index versions and the switches of those that answer."""
        versions = await before.shards[0].write("version_rows")
        epochs = await before.shards[0].write("epochs")
        for shard in after.shards:
            await shard.write("found", versions, epochs)

    async def _hand_over(self, after: Topology) -> None:
        await asyncio.to_thread(write_placement, self._root, after.placement)
        await self._hosts.placed(after.placement)
        self._topology.replace(after)

    async def _drain(self, before: Topology) -> None:
        """Wait for the searches that began before the hand-over."""
        try:
            await asyncio.wait_for(self._searched(before), _DRAIN_S)
        except TimeoutError:
            _log.warning("searches begun before the reshard are ended after %g s", _DRAIN_S)


def topology_of(
    placement: Placement, copies: Sequence[Sequence[ShardCopy]], config: RetrievalConfig
) -> Topology:
    """Return the shards of a map made of their copies."""
    return Topology(
        placement,
        tuple(
            ReplicaSet(placement.name(shard), slots, config, placement.primary(shard))
            for shard, slots in enumerate(copies)
        ),
    )
