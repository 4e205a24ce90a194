"""The Ray Data side of bulk ingestion: a streaming dataset of bounded memory, its workers, its blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources

from retrieval.config import RetrievalConfig
from retrieval.embedding.actor import ActorEmbedder
from retrieval.ingestion.bulk_stages import rows_of
from retrieval.types import Embedder

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_BYTES = 2 * 1024 * 1024
"""Size at which what a worker made is handed on: a block is embedded and stored as one."""


def bulk_dataset(tables: Sequence[pa.Table], config: RetrievalConfig) -> Dataset:
    """Return a dataset of tables whose stages wait for each other and fill `bulk_memory_bytes` at most."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)  # What each run plans belongs in Ray's log, not on the terminal.
    context = DataContext.get_current().copy()
    context.target_max_block_size = _BLOCK_BYTES
    context.target_min_block_size = 0
    context.enable_progress_bars = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=config.bulk_memory_bytes
    )
    with DataContext.current(context):
        return ray.data.from_arrow(list(tables))


def stage_options(num_workers: int) -> dict[str, Any]:
    """Return options of `map_batches` for a class that at most `num_workers` workers hold.

    They take no CPU of Ray's own count, which the platform's actors may have used up: their number bounds
    them. They run where the caller is, beside its files.
    """
    return {
        "batch_format": "pyarrow",
        "batch_size": None,
        "compute": ActorPoolStrategy(min_size=1, max_size=num_workers),
        "num_cpus": 0,
        "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    }


def embedder_of(handles: Sequence[Any], config: RetrievalConfig) -> Callable[[], Embedder]:
    """Return what makes, in a worker, a client of the platform's embedders."""
    return lambda: ActorEmbedder(list(handles), config)


async def blocks_of(dataset: Dataset) -> AsyncGenerator[list[object], None]:
    """Yield the rows of each block; closing it ends the stages."""
    tables: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    following: asyncio.Future[pa.Table | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(asyncio.to_thread(next, tables, None))
            table = await asyncio.shield(following)
            if table is None:
                return
            yield list(rows_of(table))
    finally:
        if following is not None and not following.done():
            await asyncio.wait({following})  # A generator cannot be closed while it runs.
        await asyncio.to_thread(tables.close)
