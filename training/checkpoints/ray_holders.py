"""Holders of `PeerMemory` as Ray actors, one a node: they outlive the ranks and end with the job's driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from training.checkpoints.peer_memory import CopyLabel, MemoryHolder


class RayHolder:
    """A holder behind an actor; a `HolderClient`. Picklable, so that it travels to the ranks."""

    def __init__(self, handle: Any, node: str) -> None:
        """Use a running actor on a node."""
        self.handle = handle
        self._node = node

    @property
    def node(self) -> str:
        """Return Ray's id of its node."""
        return self._node

    def put(self, label: CopyLabel, state_B: np.ndarray) -> None:
        """Keep a copy; Ray's shared memory holds the bytes."""
        self._answer(lambda: self.handle.put.remote(label, state_B))

    def labels(self, rank: int) -> list[CopyLabel]:
        """Return the labels of a rank's copies."""
        return self._answer(lambda: self.handle.labels.remote(rank))

    def get(self, label: CopyLabel) -> np.ndarray:
        """Return a copy; raises KeyError when it is not there."""
        return self._answer(lambda: self.handle.get.remote(label))

    def close(self) -> None:
        """End the actor and forget its copies."""
        ray.kill(self.handle, no_restart=True)

    def _answer(self, call: Callable[[], Any]) -> Any:
        try:
            return ray.get(call())  # The call itself stores its arguments, for which there may be no room.
        except RayError as error:
            if isinstance(error, KeyError):  # Ray raises the actor's own error as one of both classes.
                raise
            told = "its process died" if isinstance(error, RayActorError) else str(error)
            raise ConnectionError(f"the holder of node {self._node} cannot be used: {told}") from error


def start_ray_holders() -> list[RayHolder]:
    """Start a holder on every node that has CPUs; whoever starts them closes them.

    A holder that dies is not restarted: its copies would be gone all the same.
    """
    holders = []
    for node in sorted(ray.nodes(), key=lambda node: node["NodeID"]):
        if node["Alive"] and node["Resources"].get("CPU"):
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actor = cast(Any, ray.remote)(num_cpus=0, max_restarts=0, scheduling_strategy=strategy)(
                MemoryHolder
            )
            holders.append(RayHolder(actor.remote(), node["NodeID"]))
    return holders
