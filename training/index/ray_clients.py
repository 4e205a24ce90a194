"""The index over Ray, seen from a trainer: shards that can be searched and encoders that can be given work.

Start actors before the trainer and pass what is returned here through its configuration: clients are
picklable, and nothing is looked up by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from training.errors import IndexNotReady
from training.index.encoder_supervisor import SupervisedEncoderPool
from training.index.encoding import LoadEncoder, RowRange, row_ranges
from training.index.range_queue import EncodingJob, Lease, QueueLook
from training.index.ray_actors import (
    ADMIN_GROUP,
    ENCODE_GROUP,
    SEARCH_GROUP,
    EncoderActor,
    RangeQueueActor,
    TrainIndexShardActor,
)
from training.index.search_call import SearchCall
from training.index.sharded_search import shard_rows
from training.index.train_shard import MAX_RESIDENT


@dataclass(frozen=True, slots=True)
class ActorResources:
    """What one actor reserves."""

    num_cpus: int = 1
    """CPUs, which is also its number of threads; at least 1, since Ray gives one thread to a fraction."""
    num_gpus: float = 0.0
    """GPUs, or a share of one."""
    resources: tuple[tuple[str, float], ...] = ()
    """Custom Ray resources, for nodes set aside."""

    @property
    def options(self) -> dict[str, Any]:
        """Return Ray's actor options."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": dict(self.resources)}


class RayShard:
    """A shard behind an actor that Ray restarts; a `ShardClient`."""

    def __init__(self, handle: Any, name: str) -> None:
        """Use a running actor."""
        self.handle = handle
        self._name = name

    @property
    def name(self) -> str:
        """Return the name of the shard."""
        return self._name

    def search(self, call: SearchCall) -> Future[tuple[np.ndarray, np.ndarray]]:
        """Start a search."""
        return self._told(self.handle.search.remote(call))

    def load(self, number: int) -> Future[None]:
        """Start to load a version."""
        return self._told(self.handle.load.remote(number))

    def keep(self, numbers: Sequence[int]) -> Future[None]:
        """Start to drop every other version."""
        return self._told(self.handle.keep.remote(list(numbers)))

    def close(self) -> None:
        """End the actor for good."""
        ray.kill(self.handle, no_restart=True)

    def _told(self, reference: Any) -> Future[Any]:
        return _with_our_errors(reference, f"{self._name} is down, Ray restarts it")


def start_ray_shards(
    folder: Path,
    num_rows: int,
    block_rows: int,
    num_shards: int,
    resources: ActorResources | None = None,
    *,
    device: str = "cpu",
    num_searches: int = 4,
) -> list[RayShard]:
    """Start the shards of an index as actors; whoever starts them closes them.

    Args:
        folder: Of the versions, reachable from every node.
        num_rows: Rows of the corpus.
        block_rows: Rows of a block.
        num_shards: Wanted; fewer where there are fewer blocks.
        resources: Of each shard; None for one CPU.
        device: Where vectors are held, `cpu` or `cuda`.
        num_searches: Searches that a shard runs at once, one a rank is enough.
    """
    wanted = resources or ActorResources()
    groups = {SEARCH_GROUP: num_searches, ADMIN_GROUP: 1}
    actor = _actor_class(TrainIndexShardActor, wanted, groups, max_restarts=-1)
    return [
        RayShard(
            actor.remote(folder.resolve(), first, last, device, wanted.num_cpus, MAX_RESIDENT),
            f"index shard {index}",
        )
        for index, (first, last) in enumerate(shard_rows(num_rows, block_rows, num_shards))
    ]


class RayEncoderPool(SupervisedEncoderPool):
    """Encoders in actors, which pull blocks from a queue actor; dead ones are replaced by the pool.

    Make it on the rank that drives: its actors end with that process.
    """

    def __init__(
        self,
        texts: Sequence[str],
        load_encoder: LoadEncoder,
        block_rows: int,
        num_encoders: int = 1,
        resources: ActorResources | None = None,
    ) -> None:
        """Start the actors, without waiting for them.

        Args:
            texts: The corpus; stored once in Ray, a block at a time.
            load_encoder: Builds an encoder from snapshot weights; picklable.
            block_rows: Rows of a block, as the refresher has it.
            num_encoders: Actors.
            resources: Of each encoder; None for one CPU.
        """
        blocks = {
            rows: ray.put(list(texts[rows.first : rows.last])) for rows in row_ranges(len(texts), block_rows)
        }
        self._queue_actor = RayRangeQueue.start()
        self._encoders = [
            _EncoderActorSlot(
                f"encoder-{index}", load_encoder, blocks, resources or ActorResources(), self._queue_actor
            )
            for index in range(num_encoders)
        ]
        super().__init__(self._queue_actor, self._encoders)

    @property
    def encoder_handles(self) -> list[Any]:
        """Return the encoder actors of the moment."""
        return [slot.handle for slot in self._encoders]

    def close(self) -> None:
        """End supervisor, encoders and queue."""
        super().close()
        self._queue_actor.close()


class RayRangeQueue:
    """A `BlockQueue` behind an actor; calls wait while Ray restarts it."""

    def __init__(self, handle: Any) -> None:
        """Use a running actor."""
        self.handle = handle

    @classmethod
    def start(cls) -> RayRangeQueue:
        """Start the actor. It never computes, so it reserves no CPU."""
        return cls(
            ray.remote(RangeQueueActor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        )

    def begin(self, job: EncodingJob, ranges: Sequence[RowRange]) -> None:
        """Queue blocks of a version."""
        ray.get(self.handle.begin.remote(job, list(ranges)))

    def end(self, number: int) -> None:
        """Forget a version."""
        ray.get(self.handle.end.remote(number))

    def take(self, encoder: str) -> Lease | None:
        """Return a block, or None."""
        return ray.get(self.handle.take.remote(encoder))

    def done(self, encoder: str, lease: Lease) -> None:
        """Record a block that is on disk."""
        ray.get(self.handle.done.remote(encoder, lease))

    def release(self, encoder: str) -> None:
        """Give back what an encoder held."""
        ray.get(self.handle.release.remote(encoder))

    def look(self, encoders: Sequence[str], numbers: Sequence[int]) -> QueueLook:
        """Return the queue at this moment."""
        return ray.get(self.handle.look.remote(list(encoders), list(numbers)))

    def close(self) -> None:
        """End the actor for good."""
        ray.kill(self.handle, no_restart=True)


class _EncoderActorSlot:
    """Room for one encoder actor."""

    def __init__(
        self,
        name: str,
        load_encoder: LoadEncoder,
        blocks: dict[RowRange, Any],
        resources: ActorResources,
        source: RayRangeQueue,
    ) -> None:
        self._name = name
        self._start_args = (name, load_encoder, blocks)
        self._resources = resources
        self._source = source
        self.handle = self._started()

    @property
    def name(self) -> str:
        return self._name

    def start(self) -> Future[int]:
        return _with_our_errors(self.handle.run.remote(self._source), "the encoder actor died")

    def replace(self, error: BaseException) -> None:
        """Start a new actor where the old one is dead; one whose encoder raised an error is alive."""
        if isinstance(error.__cause__, RayError):
            self.close()
            self.handle = self._started()

    def close(self) -> None:
        ray.kill(self.handle, no_restart=True)

    def _started(self) -> Any:
        # The pool replaces dead actors itself, with a growing delay and on any node.
        groups = {ENCODE_GROUP: 1, ADMIN_GROUP: 1}
        actor = _actor_class(EncoderActor, self._resources, groups, max_restarts=0)
        return actor.remote(*self._start_args)


def _actor_class(cls: type, resources: ActorResources, groups: dict[str, int], max_restarts: int) -> Any:
    options: dict[str, Any] = {"max_restarts": max_restarts, "concurrency_groups": groups}
    return cast(Any, ray.remote)(**options, **resources.options)(cls)


def _with_our_errors(reference: Any, lost: str) -> Future[Any]:
    """Return the future of a call that raises what the actor raised, or IndexNotReady when it is gone."""
    told: Future[Any] = Future()
    told.set_running_or_notify_cancel()

    def tell(answered: Future[Any]) -> None:
        error = answered.exception()
        if error is None:
            told.set_result(answered.result())
        elif isinstance(error, RayTaskError):
            told.set_exception(error.cause)
        elif isinstance(error, RayError):
            gone = IndexNotReady(f"{lost} ({type(error).__name__})")
            gone.__cause__ = error
            told.set_exception(gone)
        else:
            told.set_exception(error)

    reference.future().add_done_callback(tell)
    return told
