"""Ray actors of the index: thin, so that everything they do is tested without Ray.

An actor is a fresh process, nothing is forked after a search. Ray sets `OMP_NUM_THREADS` to an actor's
`num_cpus` before its process starts, and shards tell torch as well. Imports of torch wait until an actor
needs it: queues and encoders of other libraries start without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from training.index.encoder_worker import BlockSource, EncoderWorker
from training.index.encoding import LoadEncoder, RowRange
from training.index.range_queue import EncodingJob, Lease, QueueLook, RangeQueue
from training.index.search_call import SearchCall

SEARCH_GROUP, ENCODE_GROUP, ADMIN_GROUP = "search", "encode", "admin"
"""Concurrency groups: a search never waits for a load, nor a question about an encoder for its block."""


class RangeQueueActor:
    """A `RangeQueue` for encoders anywhere; it comes back empty, and the pool fills it from the disk."""

    def __init__(self) -> None:
        self._queue = RangeQueue()

    def begin(self, job: EncodingJob, ranges: Sequence[RowRange]) -> None:
        """Queue blocks; see `RangeQueue.begin`."""
        self._queue.begin(job, ranges)

    def end(self, number: int) -> None:
        """Forget a version."""
        self._queue.end(number)

    def take(self, encoder: str) -> Lease | None:
        """Return a block, or None."""
        return self._queue.take(encoder)

    def done(self, encoder: str, lease: Lease) -> None:
        """Record a block that is on disk."""
        self._queue.done(encoder, lease)

    def release(self, encoder: str) -> None:
        """Give back what an encoder held."""
        self._queue.release(encoder)

    def look(self, encoders: Sequence[str], numbers: Sequence[int]) -> QueueLook:
        """Return the queue at this moment."""
        return self._queue.look(encoders, numbers)

    def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()


class EncoderActor:
    """An `EncoderWorker` in a process of its own."""

    def __init__(self, name: str, load_encoder: LoadEncoder, blocks: Mapping[RowRange, Any]) -> None:
        """Start without weights.

        Args:
            name: Unique within its pool.
            load_encoder: Builds an encoder from snapshot weights.
            blocks: References to the texts of each block, fetched when one is encoded.
        """
        self._worker = EncoderWorker(name, load_encoder, lambda rows: ray.get(blocks[rows]))

    @ray.method(concurrency_group=ENCODE_GROUP)
    def run(self, source: BlockSource) -> int:
        """Encode blocks until there are none; return how many."""
        return self._worker.run(source)

    @ray.method(concurrency_group=ADMIN_GROUP)
    def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()


class TrainIndexShardActor:
    """A `TrainIndexShard`; after a crash it maps what it is asked for."""

    def __init__(
        self, folder: Path, first_row: int, last_row: int, device: str, num_threads: int, room: int
    ) -> None:
        """Start without a version; see `TrainIndexShard`.

        Args:
            folder: Of the versions, reachable from here.
            first_row: First row.
            last_row: One past the last row.
            device: Where vectors are held.
            num_threads: Threads of torch.
            room: Versions that fit.
        """
        import torch

        from training.index.train_shard import TrainIndexShard

        torch.set_num_threads(num_threads)
        self._shard = TrainIndexShard(folder, first_row, last_row, device)
        self._room = room

    @ray.method(concurrency_group=SEARCH_GROUP)
    def search(self, call: SearchCall) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of this shard; see `TrainIndexShard.search`."""
        if call.number not in self._shard.resident and len(self._shard.resident) < self._room:
            self._shard.load(call.number)
        return self._shard.search(
            call.number, call.step, call.snapshot_step, call.max_staleness, call.queries_QD, call.k
        )

    @ray.method(concurrency_group=ADMIN_GROUP)
    def load(self, number: int) -> None:
        """Load a version."""
        self._shard.load(number)

    @ray.method(concurrency_group=ADMIN_GROUP)
    def keep(self, numbers: Sequence[int]) -> None:
        """Drop every other version."""
        self._shard.keep(numbers)

    @ray.method(concurrency_group=ADMIN_GROUP)
    def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()
