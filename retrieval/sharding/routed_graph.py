"""The graph over shards: each is asked for its rows, names are joined and communities made here.

An answer over several shards takes a few rounds, all of one index version: where a switch falls among them,
it begins again. A shard that does not answer is left out and named. Only primaries keep a graph.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.graph import communities as groups
from retrieval.graph.asks import Ask, Plan, Size, run_over
from retrieval.graph.lookup import lookup
from retrieval.graph.neighbourhood import neighbourhood
from retrieval.graph.types import Communities, Entities, GraphAnswer, GraphStats, Neighbourhood
from retrieval.graph_admin import check_limits
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.shard_copy import Call
from retrieval.sharding.topology import CurrentTopology, all_of
from retrieval.types import DEFAULT_TENANT

_Answer = TypeVar("_Answer")
_Whole = TypeVar("_Whole", bound=GraphAnswer)
_TRIES = 3
"""How often an answer begins again because the version was switched among its rounds."""
_LONG = ("relations", "mentions")
"""Questions whose answers grow with the library; a lost shard has been noticed before they are asked."""
MAX_CLUSTERED = 64
"""Libraries whose communities are kept in memory."""


class RoutedGraph:
    """A `GraphAdmin` over shards; belongs to one event loop."""

    def __init__(self, topology: CurrentTopology, config: RetrievalConfig) -> None:
        """Join shards.

        Args:
            topology: The shards that answer.
            config: Patience.
        """
        self._topology = topology
        self._config = config
        self._clustered: OrderedDict[tuple[str, str], tuple[object, list[groups.Grouping]]] = OrderedDict()
        self._clustering = asyncio.Lock()

    async def entities(
        self,
        name: str = "",
        *,
        library: str | None = None,
        limit: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Entities:
        """Return entities by name; see `GraphReader.entities`."""
        check_limits(name, limit=limit)
        if (alone := self._alone()) is not None:
            return await self._inside(alone, "entities", name, library=library, limit=limit, tenant=tenant)
        return await self._whole(lambda rounds: rounds.run(lookup(name, limit), tenant, library))

    async def neighbourhood(
        self,
        question: str = "",
        *,
        entities: Sequence[str] = (),
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Neighbourhood:
        """Return what is known around entities; see `GraphReader.neighbourhood`."""
        limits = {"max_neighbours": max_neighbours, "max_chunks": max_chunks}
        check_limits(question, **limits)
        if (alone := self._alone()) is not None:
            where = {"library": library, "tenant": tenant}
            return await self._inside(
                alone, "neighbourhood", question, entities=tuple(entities), **limits, **where
            )
        return await self._whole(
            lambda rounds: rounds.run(
                neighbourhood(question, entities, max_neighbours, max_chunks), tenant, library
            )
        )

    async def communities(
        self,
        *,
        library: str | None = None,
        level: int = 0,
        limit: int = 100,
        tenant: str = DEFAULT_TENANT,
    ) -> Communities:
        """Return groups of entities; see `GraphReader.communities`."""
        check_limits(level=level, limit=limit)
        if (alone := self._alone()) is not None:
            return await self._inside(
                alone, "communities", library=library, level=level, limit=limit, tenant=tenant
            )

        async def described(rounds: _Rounds) -> Communities:
            names = [library] if library is not None else await rounds.libraries(tenant)
            parts = []
            for name in names:
                found = await self._groupings(rounds, tenant, name)
                parts.append(await rounds.run(groups.describe(name, found, level, limit), tenant, name))
            return groups.joined(parts, limit)

        return await self._whole(described)

    async def stats(self) -> GraphStats:
        """Return the sums over all shards; see `GraphAdmin.stats`."""
        found: list[GraphStats] = await all_of(self._topology.now.shards, "graph_stats")
        sums = {
            name: sum(getattr(one, name) for one in found)
            for name in ("num_chunks", "num_pending", "num_failed", "num_entities", "num_relations")
        }
        failure = next((one.failure for one in found if one.failure is not None), None)
        return replace(found[0], **sums, failure=failure)

    async def retry_failed(self) -> int:
        """Queue chunks whose extraction failed once more; see `GraphAdmin.retry_failed`."""
        return sum(await all_of(self._topology.now.shards, "graph_retry_failed"))

    async def drop(self) -> None:
        """Remove what an earlier configuration kept; see `GraphAdmin.drop`."""
        await all_of(self._topology.now.shards, "graph_drop")

    def _alone(self) -> ReplicaSet | None:
        """Return the shard that is the whole index; None where there are several."""
        shards = self._topology.now.shards
        return shards[0] if len(shards) == 1 else None

    async def _inside(self, shard: ReplicaSet, method: str, *args: object, **kwargs: object) -> Any:
        """Return an answer made inside the one shard; an attached client may have to look for it first."""
        try:
            return await _asked(shard, f"graph_{method}", self._config.call_timeout_s, *args, **kwargs)
        except IndexUnavailable:
            if not await self._moved():
                raise
        return await getattr(self, method)(*args, **kwargs)

    async def _whole(self, work: Callable[[_Rounds], Any]) -> Any:
        """Return an answer of one version, with the shards that did not take part named."""
        for _ in range(_TRIES):
            rounds = _Rounds(self._topology.now.shards, self._config)
            try:
                found: GraphAnswer = await work(rounds)
            except IndexUnavailable:
                if await self._moved():
                    continue
                raise
            if rounds.missing and await self._moved():
                continue
            if len(rounds.versions) <= 1:
                missing = tuple(sorted(rounds.missing))
                return replace(found, partial=bool(missing), missing_shards=missing)
        raise IndexUnavailable(
            "the index version was switched while the graph was read; try again in a moment"
        )

    async def _moved(self) -> bool:
        """Return whether the documents turn out to be on other shards than this client thought."""
        look_up = self._topology.look_up
        return look_up is not None and bool(await look_up())

    async def _groupings(self, rounds: _Rounds, tenant: str, library: str) -> list[groups.Grouping]:
        """Return a library's communities, made anew where its graph changed on any shard."""
        async with self._clustering:
            state = await rounds.run(_state(), tenant, library)
            key, now = (tenant, library), (state, frozenset(rounds.versions), frozenset(rounds.missing))
            if key not in self._clustered or self._clustered[key][0] != now:
                edges = await rounds.run(groups.edges(), tenant, library)
                found = await asyncio.to_thread(groups.grouped, edges, groups.Clustering())
                self._clustered[key] = (now, found)
            self._clustered.move_to_end(key)
            while len(self._clustered) > MAX_CLUSTERED:
                self._clustered.popitem(last=False)
            return self._clustered[key][1]


class _Rounds:
    """The rounds of one answer over several shards."""

    def __init__(self, shards: Sequence[ReplicaSet], config: RetrievalConfig) -> None:
        self._shards = list(shards)
        self._timeout_s = config.search_deadline_s
        self._long_s = config.call_timeout_s
        self.missing: set[str] = set()
        """Shards that did not answer a round; later ones leave them out."""
        self.versions: set[str] = set()
        """Index versions that answered."""

    async def run(self, plan: Plan[_Answer], tenant: str, library: str | None) -> _Answer:
        """Return what a plan makes of the shards' answers."""
        return await run_over(
            plan, lambda ask: self._ask_all("graph_answer", ask, tenant, library, is_long=ask.what in _LONG)
        )

    async def libraries(self, tenant: str) -> list[str]:
        """Return the tenant's libraries over all shards, ordered by name."""
        return sorted({name for found in await self._ask_all("graph_libraries", tenant) for name in found})

    async def _ask_all(self, method: str, *args: object, is_long: bool = False) -> list[Any]:
        timeout_s = self._long_s if is_long else self._timeout_s
        answers = await asyncio.gather(
            *(_asked(shard, method, timeout_s, *args) for shard in self._shards), return_exceptions=True
        )
        kept, found = [], []
        for shard, answer in zip(self._shards, answers, strict=True):
            if isinstance(answer, IndexUnavailable):
                self.missing.add(shard.name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                version, value = answer
                self.versions.add(version)
                kept.append(shard)
                found.append(value)
        if not kept:
            raise IndexUnavailable(f"no shard answered within {timeout_s:g} s; is the platform up?")
        self._shards = kept
        return found


def _state() -> Plan[tuple[str, ...]]:
    """Return what changes whenever the graph of a library does."""
    sizes: list[Size] = yield Ask("size")
    return tuple(size.state for size in sizes)


async def _asked(shard: ReplicaSet, method: str, timeout_s: float, *args: object, **kwargs: object) -> Any:
    call = Call(method, args, kwargs)
    return (await shard.call_slot(shard.primary, call, timeout_s)).value
