"""Retrieval as Ray actors: embedders, and one actor for each copy of each shard.

The actors hold the same plain classes a single process uses, and the router that joins them is the same one,
running where the caller is. A batch of searches of an index of one shard is one call. Calls wait out an
actor's restart; one that stays away is `IndexUnavailable`, or a named gap in the answer, never an empty list.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray

from retrieval.actor_calls import answer, named_actor
from retrieval.config import PACKAGED_EMBEDDER, RetrievalConfig
from retrieval.embedding.actor import ActorEmbedder, EmbedderActor, embedder_name, start_embedders
from retrieval.errors import IndexUnavailable
from retrieval.graph.types import TextModel
from retrieval.ingestion.embedders import Embedders
from retrieval.ingestion.graph_follower import extractor_of
from retrieval.shard_actor import (
    ActorHosts,
    IndexShardActor,
    embedder_loader,
    end_embedders,
    shard_actor_name,
)
from retrieval.sharding.placement import Placement, open_placement
from retrieval.sharding.router import Router, topology_of
from retrieval.sharding.sharded_retrieval import remove_leftovers
from retrieval.types import SearchRequest, SearchResult

__all__ = ["ActorEmbedder", "ActorRetrieval", "EmbedderActor", "IndexShardActor", "actor_env"]

MAX_CONCURRENCY = 256


def actor_env(config: RetrievalConfig, num_threads: int) -> dict[str, str]:
    """Return the environment variables the actors should start with (`runtime_env={"env_vars": ...}`).

    Args:
        config: Decides whether a model may be downloaded.
        num_threads: Threads of linear algebra; Ray would set them to the actor's `num_cpus`.
    """
    env = {
        "OMP_NUM_THREADS": str(num_threads),
        # Spinning OpenMP threads starve a neighbour on few cores: 71 -> 5 tok/s of decoding beside one.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.embedder == PACKAGED_EMBEDDER or Path(config.embedder).expanduser().is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


class ActorRetrieval(Router):
    """A `Retriever`, `DocumentStore` and `IndexAdmin` over the actors of one platform."""

    def __init__(
        self,
        folder: Path,
        config: RetrievalConfig,
        hosts: ActorHosts,
        placement: Placement,
        embedders: list[Any],
        namespace: str,
        embedder_options: dict[str, Any],
    ) -> None:
        """Use running actors; `start` and `attach` are the usual ways."""
        self.embedders = embedders
        """Handles of the embedder's replicas."""
        self._actors = hosts
        self._namespace = namespace
        self._attached = False
        self._own = Embedders(embedder_loader(config, namespace, embedder_options))
        self._own_used = False
        topology = topology_of(placement, hosts.copies(placement), config)
        super().__init__(folder, config, hosts, topology, self._own)
        self._topology.look_up = self._find_shards

    @classmethod
    def start(
        cls,
        folder: Path,
        config: RetrievalConfig,
        *,
        namespace: str,
        num_threads: int,
        detached: bool = False,
        embedder_options: dict[str, Any] | None = None,
        shard_options: dict[str, Any] | None = None,
        text_model: TextModel | None = None,
    ) -> ActorRetrieval:
        """Start the actors under their names in `namespace` and return at once; `ready` waits for them.

        Args:
            folder: The data folder of the shards, on the nodes where they run.
            config: Settings of all; `num_shards` must be the folder's.
            namespace: The Ray namespace of the platform.
            num_threads: Threads of linear algebra of each actor.
            detached: Whether they outlive the process that starts them.
            embedder_options: More Ray actor options of the embedders, such as `num_gpus` or `resources`.
            shard_options: The same for the shards.
            text_model: Finds entities where `config.graph` is `llm`; it travels to the shards.

        Raises:
            IndexUnavailable: The folder holds another number of shards.
            ValueError: The graph wants a language model and none is given.
        """
        extractor_of(config, text_model)  # Here, where the caller sees the error.
        placement = open_placement(folder, config.num_shards)
        remove_leftovers(folder, placement)
        common: dict[str, Any] = {
            "namespace": namespace,
            "lifetime": "detached" if detached else None,
            "max_restarts": -1,
            "max_concurrency": MAX_CONCURRENCY,
            "num_cpus": 1,
            "runtime_env": {"env_vars": actor_env(config, num_threads)},
        }
        embedding = {**common, **(embedder_options or {})}

        def actor_of(shard: int, slot: int, placement: Placement) -> Any:
            options = {**common, "name": shard_actor_name(shard, slot), **(shard_options or {})}
            kind = ray.remote(IndexShardActor).options(**options)
            return kind.remote(str(folder), config, namespace, shard, slot, placement, embedding, text_model)

        embedders = start_embedders(config, embedding)
        hosts = ActorHosts(actor_of, 1 + config.num_replicas)
        return cls(folder, config, hosts, placement, embedders, namespace, embedding)

    @classmethod
    def attach(cls, config: RetrievalConfig, *, namespace: str) -> ActorRetrieval:
        """Use the actors running in `namespace`, as many as there are.

        Raises:
            IndexUnavailable: They are not running.
        """
        first = named_actor(shard_actor_name(0), namespace)
        placement: Placement = ray.get(first.placement.remote(), timeout=config.call_timeout_s)

        def actor_of(shard: int, slot: int, placement: Placement) -> Any:
            return named_actor(shard_actor_name(shard, slot), namespace)

        names = [embedder_name(replica) for replica in range(config.num_embedders)]
        embedders = [named_actor(name, namespace) for name in names]
        hosts = ActorHosts(actor_of, 1 + config.num_replicas)
        attached = cls(Path(), config, hosts, placement, embedders, namespace, {})
        attached._attached = True
        return attached

    @property
    def embedder(self) -> Any:
        """Return the handle of the embedder's first replica."""
        return self.embedders[0]

    @property
    def shard(self) -> Any:
        """Return the handle of the first shard's primary."""
        return self._actors.handles[0, self.shards[0].primary]

    async def ready(self) -> dict[str, float]:
        """Wait until all actors answer and return seconds by stage of their start."""
        embedder = ActorEmbedder(self.embedders, self._config)
        # Side by side, but several shards are settled with the embedder at hand.
        shards_ready = asyncio.ensure_future(super().ready()) if len(self.shards) == 1 else None
        embedding = await embedder.ready()
        await self._use_embedder()
        shards = await (shards_ready or super().ready())
        return {f"embedder_{stage}": value for stage, value in embedding.items()} | {
            f"shard_{stage}": value for stage, value in shards.items()
        }

    async def aclose(self) -> None:
        """Close the shards and stop all actors for good; an attached client only leaves."""
        if self._attached:
            await asyncio.gather(*self._collecting)
            await self._stop_searching()
            return
        others: set[str] = set()
        try:
            others = {info.spec.embedder for info in await self.versions()} - {self._config.embedder}
            await super().aclose()
        finally:
            self._actors.end()
            for handle in self.embedders:
                ray.kill(handle, no_restart=True)
            end_embedders(others, self._namespace)

    async def _use_embedder(self) -> None:
        """Have the embedder at hand for searches over several shards."""
        if not self._own_used:
            await self._own.use(ActorEmbedder(self.embedders, self._config))
            self._own_used = True

    async def _over_shards(self, requests: list[SearchRequest]) -> list[SearchResult]:
        await self._use_embedder()
        return await super()._over_shards(requests)

    async def _run(self, requests: list[SearchRequest]) -> list[SearchResult]:
        try:
            results = await super()._run(requests)
        except IndexUnavailable:
            if not await self._find_shards():
                raise
            return await super()._run(requests)
        if self._attached and any(result.partial for result in results) and await self._find_shards():
            return await super()._run(requests)
        return results

    async def _find_shards(self) -> bool:
        """Look up where the documents are, for a client that did not move them; True if elsewhere now."""
        if not self._attached:
            return False
        first = self._actors.handles[0, 0]
        placement: Placement = await answer(
            "the index shard", self._config.call_timeout_s, first.placement.remote
        )
        if placement == self.placement:
            return False
        self._topology.replace(topology_of(placement, self._actors.copies(placement), self._config))
        return True
