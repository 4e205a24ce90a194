"""Searching shards: callers are batched, and one version answers all shards of a search.

An index of one shard is searched inside that shard, in one call. With several, the searcher runs here and
asks each shard for its candidates; a shard that does not answer is named in the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval.config import RetrievalConfig
from retrieval.errors import (
    IndexOverloaded,
    IndexUnavailable,
    InvalidSearch,
    RetrievalUnavailable,
    UnknownVersion,
)
from retrieval.metrics import RetrievalMetrics, ShardLoad
from retrieval.requests import check_searches
from retrieval.sharding.batcher import MicroBatcher
from retrieval.sharding.index_views import IndexViews
from retrieval.sharding.placement import Placement
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.topology import CurrentTopology, Topology
from retrieval.spans import search_span
from retrieval.types import SearchRequest, SearchResult

if TYPE_CHECKING:
    from retrieval.ranking.searcher import Searcher

_MIN_WINDOW_S = 0.001
_RETRY_S = 1.0
_LOAD_S = 3.0
"""How long a shard may take to say what it holds."""


class RoutedSearch:
    """The searches of all callers of one router; belongs to one event loop."""

    def _start_searching(self, topology: CurrentTopology, config: RetrievalConfig, views: IndexViews) -> None:
        """Prepare.

        Args:
            topology: The shards.
            config: Limits, batching and deadlines.
            views: What answers over several shards.
        """
        self._topology = topology
        self._config = config
        self._views = views
        self._searcher: Searcher | None = None
        self._num_alone = 0
        self._metrics = RetrievalMetrics()
        self._running: dict[asyncio.Future[list[SearchResult]], Topology] = {}
        window_s = config.batch_window_ms / 1000
        self._batcher: MicroBatcher[SearchRequest, SearchResult] = MicroBatcher(
            self._run,
            max_batch=config.search_batch,
            max_queued=config.max_queued_searches,
            window_s=(min(_MIN_WINDOW_S, window_s), window_s),
        )

    async def _stop_searching(self) -> None:
        """End the searches under way."""
        await self._batcher.aclose()
        await self._views.aclose()

    async def _searched(self, topology: Topology) -> None:
        """Return once no call over a topology is under way; its shards must stay until then."""
        while running := [task for task, over in self._running.items() if over is topology]:
            await asyncio.wait(running)

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`.

        Raises:
            InvalidSearch: A request is out of its bounds.
            IndexOverloaded: Too many searches wait already.
            IndexUnavailable: No shard could answer.
        """
        if not requests:
            return []
        check_searches(requests, self._config)
        placement = self._topology.now.placement
        for request in requests:
            _check_shards(request, placement)
        deadlines = [request.deadline_s for request in requests if request.deadline_s is not None]
        try:
            with search_span(requests) as found:
                if any(request.min_seq for request in requests):
                    results = await self._alone(list(requests))
                else:
                    results = await self._batcher.submit(requests, deadline_s=min(deadlines, default=None))
                found(results)
        except RetrievalUnavailable:
            self._metrics.failed(len(requests))
            raise
        self._metrics.searched(results)
        return results

    async def metrics_text(self) -> str:
        """Return what this router counted and what its shards hold, in Prometheus' text format."""
        shards = self._topology.now.shards

        async def load(shard: ReplicaSet) -> ShardLoad | None:
            try:
                return await shard.write("load", patience_s=_LOAD_S)
            except IndexUnavailable:
                return None

        loads = await asyncio.gather(*(load(shard) for shard in shards))
        by_shard = {shard.name: found for shard, found in zip(shards, loads, strict=True)}
        return self._metrics.prometheus_text(self._batcher.num_queued + self._num_alone, by_shard)

    async def _alone(self, requests: list[SearchRequest]) -> list[SearchResult]:
        """Answer searches that may wait for a write, which nobody else should wait for."""
        if self._num_alone >= self._config.max_queued_searches:
            raise IndexOverloaded(
                f"{self._num_alone:,} searches wait for a log position already (max_queued_searches="
                f"{self._config.max_queued_searches:,}); try again in {_RETRY_S:g} s",
                _RETRY_S,
            )
        self._num_alone += len(requests)
        try:
            return await self._run(requests)
        finally:
            self._num_alone -= len(requests)

    async def _run(self, requests: list[SearchRequest]) -> list[SearchResult]:
        now = self._topology.now
        one = len(now.shards) == 1
        search = now.shards[0].search(requests, _deadline_s(requests)) if one else self._over_shards(requests)
        task = asyncio.ensure_future(search)
        self._running[task] = now
        try:
            return await task
        finally:
            del self._running[task]
            task.cancel()

    async def _over_shards(self, requests: list[SearchRequest]) -> list[SearchResult]:
        from retrieval.ranking.searcher import Searcher

        if self._searcher is None:
            self._searcher = Searcher(self._views.view_of, self._config)
        await self._views.ensure()
        try:
            return await self._searcher.search(requests)
        except UnknownVersion:
            # Another router may have made it, or switched away from the one known here and dropped it.
            await self._views.refresh()
            return await self._searcher.search(requests)


def _deadline_s(requests: Sequence[SearchRequest]) -> float | None:
    """Return the longest deadline of a batch; None, for the longest call, where one has none."""
    deadlines = [request.deadline_s for request in requests]
    return None if None in deadlines else max(item for item in deadlines if item is not None)


def _check_shards(request: SearchRequest, placement: Placement) -> None:
    """Refuse log positions of shards that never were; those from before a reshard are in what answers now."""
    for name in request.min_seq or ():
        number, _, generation = name.removeprefix("shard-").partition(".")
        made = int(generation) if generation.isdigit() else 1
        if (
            not name.startswith("shard-")
            or not number.isdigit()
            or made > placement.generation
            or (made == placement.generation and int(number) >= placement.num_shards)
        ):
            names = ", ".join(placement.name(shard) for shard in range(min(placement.num_shards, 8)))
            raise InvalidSearch(f"min_seq names no shard {name!r}; the shards are {names}")
