"""An index of several shards in one process: the shards are objects, and the router calls them directly."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import TracebackType

from retrieval.config import RetrievalConfig
from retrieval.graph.types import TextModel
from retrieval.ingestion.embedders import Embedders, LoadEmbedder
from retrieval.sharding.node import ShardNode, remove_copy
from retrieval.sharding.placement import Placement, generation_folder, open_placement
from retrieval.sharding.router import Router, topology_of
from retrieval.sharding.shard_copy import ShardCopy
from retrieval.types import Embedder


class ShardedRetrieval(Router):
    """A `Retriever`, `DocumentStore` and `IndexAdmin` over shards in this process."""

    @classmethod
    async def open(
        cls,
        folder: Path,
        config: RetrievalConfig,
        embedder: Embedder,
        *,
        load_embedder: LoadEmbedder | None = None,
        text_model: TextModel | None = None,
    ) -> ShardedRetrieval:
        """Open the shards in `folder` and begin to ingest what is queued there.

        Args:
            folder: Holds the map of shards and their folders; created if missing.
            config: Settings; `num_shards` must be the folder's, and `num_replicas` may be any.
            embedder: The one `config.embedder` names.
            load_embedder: Loads others, for versions made with them; None when there are none.
            text_model: Finds entities where `config.graph` is `llm`.

        Raises:
            IndexUnavailable: A shard cannot be opened, or there is another number of them.
            StorageFull: The disk has no room.
            ValueError: Chunks of `config.chunk_tokens` would be cut by the embedder.
        """
        placement = await asyncio.to_thread(open_placement, folder, config.num_shards)
        await asyncio.to_thread(remove_leftovers, folder, placement)
        embedders = Embedders(load_embedder)
        await embedders.use(embedder)
        hosts = LocalHosts(folder, config, embedder, load_embedder, text_model)
        try:
            topology = topology_of(placement, await hosts.open(placement, answering=True), config)
            retrieval = cls(folder, config, hosts, topology, embedders)
            await retrieval.ready()
        except BaseException:
            await hosts.close(placement, remove=False)
            raise
        return retrieval

    async def __aenter__(self) -> ShardedRetrieval:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class LocalHosts:
    """Opens copies of shards as objects of this process."""

    def __init__(
        self,
        root: Path,
        config: RetrievalConfig,
        embedder: Embedder,
        load_embedder: LoadEmbedder | None,
        text_model: TextModel | None = None,
    ) -> None:
        """Keep what every copy is opened with."""
        self._root = root
        self._config = config
        self._embedder = embedder
        self._load_embedder = load_embedder
        self._text_model = text_model
        self._nodes: dict[tuple[int, int, int], ShardNode] = {}

    def node(self, placement: Placement, shard: int, slot: int = 0) -> ShardNode:
        """Return an open copy."""
        return self._nodes[placement.generation, shard, slot]

    async def open(self, placement: Placement, *, answering: bool) -> list[list[ShardCopy]]:
        """Return every copy of every shard; see `Hosts.open`."""
        return [
            [
                await self.open_copy(placement, shard, slot, answering=answering)
                for slot in range(1 + self._config.num_replicas)
            ]
            for shard in range(placement.num_shards)
        ]

    async def open_copy(
        self, placement: Placement, shard: int, slot: int, *, answering: bool = True
    ) -> ShardNode:
        """Return one copy, open."""

        def peer(other: int) -> ShardCopy:
            return self._nodes[placement.generation, shard, other]

        node = await ShardNode.open(
            placement.folder(self._root, shard, slot),
            placement.name(shard),
            self._config,
            self._embedder,
            slot=slot,
            primary=placement.primary(shard) if answering else -1,
            standalone=placement.num_shards == 1,
            peer=peer,
            load_embedder=self._load_embedder,
            text_model=self._text_model,
        )
        self._nodes[placement.generation, shard, slot] = node
        return node

    async def placed(self, placement: Placement) -> None:
        """Take note of a map that was made durable: copies in one process have nothing to note."""

    async def close(self, placement: Placement, *, remove: bool) -> None:
        """Close the copies of a map; see `Hosts.close`."""
        mine = [key for key in self._nodes if key[0] == placement.generation]
        # Replicas first: they would ask a primary that is gone.
        for key in sorted(mine, key=lambda key: self._nodes[key].is_primary):
            node = self._nodes.pop(key)
            await (node.remove() if remove else node.aclose())
        if remove:
            await asyncio.to_thread(
                shutil.rmtree, generation_folder(self._root, placement.generation), ignore_errors=True
            )


def remove_leftovers(root: Path, placement: Placement) -> None:
    """Remove shards that the map does not name: those a reshard left, or did not complete."""
    shards = root / "shards"
    for path in shards.iterdir() if shards.is_dir() else ():
        if path.name.isdigit() and int(path.name) != placement.generation:
            shutil.rmtree(path, ignore_errors=True)
    if placement.folder(root, 0, 0) != root and placement.generation > 1:
        remove_copy(root)
