"""Opens sharded indexes in this process, with an embedder that costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.sharding.sharded_retrieval import LocalHosts, ShardedRetrieval


@contextlib.asynccontextmanager
async def opened(folder: Path, **settings: object) -> AsyncIterator[ShardedRetrieval]:
    """Yield an open index; settings are those of `RetrievalConfig`."""
    config = RetrievalConfig(**settings)  # pyright: ignore[reportArgumentType]
    async with await ShardedRetrieval.open(folder, config, HashEmbedder(dim=32)) as retrieval:
        yield retrieval


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Return once a condition holds."""
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"not so after {timeout_s:g} s")


def node_of(retrieval: ShardedRetrieval, shard: int, slot: int = 0):
    """Return a copy of a shard."""
    hosts = retrieval._hosts
    assert isinstance(hosts, LocalHosts)
    return hosts.node(retrieval.placement, shard, slot)
