"""The shards that answer now; a reshard replaces the whole value at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from retrieval.errors import ShardMoved
from retrieval.sharding.placement import Placement
from retrieval.sharding.replica_set import ReplicaSet

T = TypeVar("T")

_HAND_OVER_S = 10.0


@dataclass(frozen=True, slots=True)
class Topology:
    """A map of documents and the shards it speaks of."""

    placement: Placement
    """Which shard holds a document."""
    shards: tuple[ReplicaSet, ...]
    """By number."""

    def shard_of(self, document_id: str) -> ReplicaSet:
        """Return the shard that holds a document."""
        return self.shards[self.placement.shard_of(document_id)]

    def by_shard(self, document_ids: Iterable[str]) -> dict[int, list[int]]:
        """Return the positions of documents in the input by the shard that holds them."""
        positions: dict[int, list[int]] = {}
        for position, document_id in enumerate(document_ids):
            positions.setdefault(self.placement.shard_of(document_id), []).append(position)
        return positions


class CurrentTopology:
    """Holds the topology of now."""

    def __init__(self, topology: Topology) -> None:
        """Start with one."""
        self._now = topology
        self._replaced = asyncio.Event()
        self.look_up: Callable[[], Awaitable[object]] | None = None
        """Finds out where the documents are, for a router that does not move them itself."""

    @property
    def now(self) -> Topology:
        """Return the topology that answers."""
        return self._now

    def replace(self, topology: Topology) -> None:
        """Answer from another from now on."""
        self._now = topology
        self._replaced.set()
        self._replaced = asyncio.Event()

    async def using(self, work: Callable[[Topology], Awaitable[T]]) -> T:
        """Return what `work` makes of the topology; once more where a reshard replaced it meanwhile."""
        before, replaced = self._now, self._replaced
        try:
            return await work(before)
        except ShardMoved as moved:
            # A shard refuses writes a moment before the new map is durable.
            if self.look_up is not None:
                await self.look_up()
            try:
                async with asyncio.timeout(_HAND_OVER_S):
                    await replaced.wait()
            except TimeoutError:
                raise moved from None
            return await work(self._now)


async def gathered(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Return all answers in order; the first error is raised once every call has ended.

    A write must not be cancelled half-way because another shard refused its own.
    """
    answers = await asyncio.gather(*calls, return_exceptions=True)
    done: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        done.append(answer)
    return done


async def all_of(shards: Iterable[ReplicaSet], method: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Return what a method of every shard's primary returns, in order of the shards."""
    return await gathered(shard.write(method, *args, **kwargs) for shard in shards)
