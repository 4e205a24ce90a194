"""Copies of shards behind Ray actors: the actor, the router's view of it, and what starts and stops them.

An actor holds one slot of one shard number. A reshard opens the shard of the next generation in the same
actor beside the one that answers, so actors keep their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from retrieval.actor_calls import answer, answer_once, named_actor
from retrieval.config import RetrievalConfig
from retrieval.embedding.actor import EMBEDDER_NAME, ActorEmbedder, EmbedderActor
from retrieval.errors import IndexUnavailable, ShardMoved
from retrieval.graph.types import TextModel
from retrieval.ingestion.embedders import LoadEmbedder
from retrieval.packed import pack, pack_passages, unpack, unpack_passages
from retrieval.sharding.node import ShardNode
from retrieval.sharding.placement import Placement, read_placement, write_placement
from retrieval.sharding.shard_copy import Answered, Call, ShardCopy
from retrieval.types import Embedder

_PACK: dict[str, Callable[[Any], Any]] = {"search": pack, "passages": pack_passages}
"""By method: how its answer is made ready for another process."""
_UNPACK: dict[str, Callable[[Any], Any]] = {"search": unpack, "passages": unpack_passages}
_CLOSE_S = 30.0


def shard_actor_name(shard: int, slot: int = 0) -> str:
    """Return the name of the actor that holds a copy of a shard."""
    return f"retrieval-shard-{shard}-replica-{slot}" if slot else f"retrieval-shard-{shard}"


def embedder_loader(config: RetrievalConfig, namespace: str, options: Mapping[str, Any]) -> LoadEmbedder:
    """Return what starts an actor for another embedder, or finds the one that runs already.

    Args:
        config: Settings of the embedder, but for its name.
        namespace: Where the actor is to be found.
        options: Ray actor options.
    """

    async def load(name: str) -> Embedder:
        other = replace(config, embedder=name, num_embedders=1)
        handle = (
            ray.remote(EmbedderActor)
            .options(
                **{
                    **options,
                    "name": _other_embedder(name),
                    "namespace": namespace,
                    "get_if_exists": True,
                    # The shard that asked first may go; others use it.
                    "lifetime": "detached",
                }
            )
            .remote(other)
        )
        embedder = ActorEmbedder(handle, other)
        try:
            await embedder.ready()
        except (OSError, ValueError):
            end_embedders([name], namespace)
            raise
        return embedder

    return load


def end_embedders(names: Iterable[str], namespace: str) -> None:
    """Stop the actors of other embedders, where they run."""
    for name in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(_other_embedder(name), namespace=namespace), no_restart=True)


def _other_embedder(name: str) -> str:
    return f"{EMBEDDER_NAME}-of-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class IndexShardActor:
    """One copy of a shard; opens, and resumes its work, as soon as it starts."""

    def __init__(
        self,
        folder: str,
        config: RetrievalConfig,
        namespace: str,
        shard: int = 0,
        slot: int = 0,
        placement: Placement | None = None,
        embedder_options: Mapping[str, Any] | None = None,
        text_model: TextModel | None = None,
    ) -> None:
        # Embedders come by name: a handle among the arguments would tie restarts to its sender's life.
        self._root = Path(folder)
        self._config = config
        self._namespace = namespace
        self._shard = shard
        self._slot = slot
        self._options = dict(embedder_options or {})
        self._text_model = text_model
        self._opening: dict[int, asyncio.Future[ShardNode]] = {}
        # After a restart the file knows of changes that the arguments do not.
        self._placement = read_placement(self._root) or placement or Placement(1)
        if shard < self._placement.num_shards:
            self._open(self._placement, answering=True)

    async def answer(self, generation: int, call: Call, timeout_s: float) -> Answered:
        """Return what a method of the copy of a generation returns."""
        answered = await (await self._node(generation)).answer(call, timeout_s)
        packing = _PACK.get(call.method)
        return answered if packing is None else Answered(packing(answered.value), answered.seq)

    async def placement(self) -> Placement:
        """Return the map of shards as this actor knows it."""
        return self._placement

    async def place(self, placement: Placement) -> None:
        """Know a map that was made durable."""
        self._placement = placement
        if await asyncio.to_thread(read_placement, self._root) != placement:
            await asyncio.to_thread(write_placement, self._root, placement)

    async def open(self, placement: Placement, answering: bool) -> None:
        """Open the copy of another generation."""
        self._open(placement, answering=answering)
        await self._node(placement.generation)

    async def close(self, generation: int, remove: bool) -> None:
        """Close the copy of a generation, and remove its files if asked to."""
        opening = self._opening.pop(generation, None)
        if opening is not None:
            node = await opening
            await (node.remove() if remove else node.aclose())

    async def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()

    def _open(self, placement: Placement, *, answering: bool) -> None:
        self._opening[placement.generation] = asyncio.ensure_future(self._opened(placement, answering))

    async def _opened(self, placement: Placement, answering: bool) -> ShardNode:
        def peer(slot: int) -> ShardCopy:
            name = shard_actor_name(self._shard, slot)
            return ActorShard(named_actor(name, self._namespace), slot, placement.generation)

        return await ShardNode.open(
            placement.folder(self._root, self._shard, self._slot),
            placement.name(self._shard),
            self._config,
            ActorEmbedder.attach(self._config, namespace=self._namespace),
            slot=self._slot,
            primary=placement.primary(self._shard) if answering else -1,
            standalone=placement.num_shards == 1,
            peer=peer,
            load_embedder=embedder_loader(self._config, self._namespace, self._options),
            text_model=self._text_model,
        )

    async def _node(self, generation: int) -> ShardNode:
        opening = self._opening.get(generation)
        if opening is None:
            raise ShardMoved(
                f"shard {self._shard} of generation {generation} is not here any more; look up where its "
                "documents are"
            )
        if opening.done() and opening.exception() is not None and generation == self._placement.generation:
            self._open(self._placement, answering=True)  # The cause, a full disk say, may be gone.
            opening = self._opening[generation]
        return await asyncio.shield(opening)


class ActorShard:
    """A `ShardCopy` behind an actor."""

    def __init__(self, handle: Any, slot: int, generation: int) -> None:
        """Use a running actor's shard of one generation."""
        self.handle = handle
        self._slot = slot
        self._generation = generation

    @property
    def slot(self) -> int:
        """Return the copy's number."""
        return self._slot

    async def answer(self, call: Call, timeout_s: float) -> Answered:
        """Return what a method returns; see `ShardCopy.answer`."""
        value, seq = await answer_once(
            "the index shard", timeout_s, lambda: self.handle.answer.remote(self._generation, call, timeout_s)
        )
        unpacking = _UNPACK.get(call.method)
        return Answered(value if unpacking is None else unpacking(value), seq)


class ActorHosts:
    """Opens copies of shards in actors, one for each slot of each shard number."""

    def __init__(self, actor_of: Callable[[int, int, Placement], Any], num_slots: int) -> None:
        """Start without actors.

        Args:
            actor_of: Starts or finds the actor of a shard number and slot.
            num_slots: Copies of each shard.
        """
        self._actor_of = actor_of
        self._num_slots = num_slots
        self._current: Placement | None = None
        self.handles: dict[tuple[int, int], Any] = {}
        """Actors by shard number and slot."""

    def copies(self, placement: Placement) -> list[list[ShardCopy]]:
        """Return the copies of a map, their actors started, without waiting for them."""
        self._current = self._current or placement
        found: list[list[ShardCopy]] = []
        for shard in range(placement.num_shards):
            slots: list[ShardCopy] = []
            for slot in range(self._num_slots):
                if (shard, slot) not in self.handles:
                    self.handles[shard, slot] = self._actor_of(shard, slot, self._current)
                slots.append(ActorShard(self.handles[shard, slot], slot, placement.generation))
            found.append(slots)
        return found

    async def open(
        self, placement: Placement, *, answering: bool, timeout_s: float = 600.0
    ) -> list[list[ShardCopy]]:
        """Return every copy of every shard; see `Hosts.open`."""
        copies = self.copies(placement)
        await asyncio.gather(
            *(
                answer("the index shard", timeout_s, lambda h=handle: h.open.remote(placement, answering))
                for (shard, _), handle in self.handles.items()
                if shard < placement.num_shards
            )
        )
        return copies

    async def placed(self, placement: Placement) -> None:
        """Tell every actor of a map that was made durable."""
        self._current = placement
        await asyncio.gather(
            *(
                answer("the index shard", _CLOSE_S, lambda h=handle: h.place.remote(placement))
                for handle in self.handles.values()
            ),
            return_exceptions=True,
        )

    async def close(self, placement: Placement, *, remove: bool) -> None:
        """Close the copies of a map, and end the actors that hold no other; see `Hosts.close`."""
        ended = await asyncio.gather(
            *(
                answer(
                    "the index shard", _CLOSE_S, lambda h=handle: h.close.remote(placement.generation, remove)
                )
                for handle in self.handles.values()
            ),
            return_exceptions=True,
        )
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, IndexUnavailable):
                raise error
        if remove and self._current is not None:
            self.end(self._current.num_shards)

    def end(self, num_shards: int = 0) -> None:
        """Stop the actors of shard numbers from `num_shards` on for good."""
        for key in [key for key in self.handles if key[0] >= num_shards]:
            ray.kill(self.handles.pop(key), no_restart=True)
