"""Checkpoints in the memory of other processes: restarts that repeat few steps without a disk's pace.

Every rank copies its own state to a holder on its node and to one on the next, so that a copy outlives the
death of ranks and, with two nodes or more, of a node. A step counts when every rank has it. The checkpoints
on disk stay what a run is resumed from when its holders are gone, or by another number of ranks.

Source: Wang et al. 2023, GEMINI (https://doi.org/10.1145/3600006.3613145): checkpoints in the CPU memory of
peers, in groups so that a lost machine's copy is on another.
"""

from __future__ import annotations

import io
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from training.errors import CheckpointError

_log = logging.getLogger(__name__)

KEPT = 2
"""Copies kept of a rank: the newest may not have reached every rank's holders."""


@dataclass(frozen=True, slots=True)
class CopyLabel:
    """What tells one rank's copies apart."""

    step: int
    """Optimizer steps done."""
    rank: int
    """Whose state it is."""
    world_size: int
    """Ranks that shared the state."""
    fingerprint: str
    """Of the configuration and the data."""


class MemoryHolder:
    """Copies in this process's memory, the newest `KEPT` of each rank."""

    def __init__(self, node: str = "") -> None:
        """Start empty, on a machine of this name."""
        self.node = node
        self._copies: dict[int, dict[CopyLabel, np.ndarray]] = {}

    def put(self, label: CopyLabel, state_B: np.ndarray) -> None:
        """Keep uint8[B]; the oldest copy of the rank goes where there are too many."""
        copies = self._copies.setdefault(label.rank, {})
        copies.pop(label, None)  # A run that came by this step again: its copy is now the newest.
        copies[label] = state_B
        while len(copies) > KEPT:
            copies.pop(next(iter(copies)))

    def labels(self, rank: int) -> list[CopyLabel]:
        """Return the labels of a rank's copies, oldest first."""
        return list(self._copies.get(rank, {}))

    def get(self, label: CopyLabel) -> np.ndarray:
        """Return uint8[B]; raises KeyError when it is not here."""
        return self._copies[label.rank][label]


class HolderClient(Protocol):
    """A `MemoryHolder`, here or elsewhere; every call raises ConnectionError when it is gone or full."""

    @property
    def node(self) -> str:
        """Return the machine it is on."""
        ...

    def put(self, label: CopyLabel, state_B: np.ndarray) -> None:
        """Keep a copy and return when it is kept."""
        ...

    def labels(self, rank: int) -> list[CopyLabel]:
        """Return the labels of a rank's copies."""
        ...

    def get(self, label: CopyLabel) -> np.ndarray:
        """Return a copy."""
        ...


@dataclass(frozen=True, slots=True)
class Peers:
    """Where a rank's copies go."""

    holders: tuple[HolderClient, ...]
    """One a machine, in the same order on every rank."""
    node: str
    """The machine of this rank."""


class PeerMemory:
    """One rank's way to the holders; every rank makes one and calls it at the same steps."""

    def __init__(self, peers: Peers, fingerprint: str) -> None:
        """Use running holders, within the initialised process group.

        Args:
            peers: The holders.
            fingerprint: Of the configuration and the data: copies of another run are not seen.
        """
        self._fingerprint = fingerprint
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        nodes = [holder.node for holder in peers.holders]
        own = nodes.index(peers.node) if peers.node in nodes else 0
        self._holders = [*peers.holders[own:], *peers.holders[:own]]
        """This machine's first, the next machine's second."""
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="peer-memory")
        self._sending: Future[None] | None = None
        self._facts: dict[int, dict[str, Any]] = {}

    def begin(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Copy this rank's state and send it in the background; the next call waits for it.

        A holder that is gone is left out with a warning: training is not stopped by a lost copy.

        Args:
            step: Optimizer steps done.
            tensors: A state dict; of sharded tensors, this rank's part.
            facts: What else the run needs to go on.
        """
        self.wait()
        state = {"tensors": _local_copy(tensors), "facts": facts}
        self._facts = {**self._facts, step: facts}
        for old in sorted(self._facts)[:-KEPT]:
            del self._facts[old]
        label = CopyLabel(step, self._rank, self._world_size, self._fingerprint)
        self._sending = self._sender.submit(self._send, label, state)

    def wait(self) -> None:
        """Wait until the copy under way is kept."""
        if self._sending is not None:
            self._sending.result()
            self._sending = None

    def close(self) -> None:
        """End the sender."""
        self._sender.shutdown(wait=True, cancel_futures=True)

    def kept_facts(self) -> list[dict[str, Any]]:
        """Return the facts of the copies that a restart may go on from."""
        return list(self._facts.values())

    def newest(self) -> int | None:
        """Return the newest step that every rank has a copy of, None where there is none."""
        mine = {label.step for label in self._found()}
        everyone: list[set[int]] = [set() for _ in range(self._world_size)]
        dist.all_gather_object(everyone, mine, group=self._group)
        return max(set.intersection(*everyone), default=None)

    def load(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Read a copy into a state dict in place and return its facts.

        Raises:
            CheckpointError: The copy is gone, or its tensors are not those of the state dict.
        """
        label = CopyLabel(step, self._rank, self._world_size, self._fingerprint)
        for holder in self._holders:
            try:
                state_B = holder.get(label)
            except (ConnectionError, KeyError):
                continue
            state = torch.load(io.BytesIO(state_B.data), weights_only=True)
            _restore(tensors, state["tensors"], "")
            self._facts = {step: state["facts"]}
            return state["facts"]
        raise CheckpointError(
            f"the copy of step {step} of rank {self._rank} is in no holder's memory any more; start again "
            "with the same arguments to go on from the newest checkpoint on disk"
        )

    def _found(self) -> list[CopyLabel]:
        found: list[CopyLabel] = []
        for holder in self._holders:
            try:
                found += holder.labels(self._rank)
            except ConnectionError as error:
                _log.warning("the copies on '%s' are lost: %s", holder.node, error)
        return [
            label
            for label in found
            if label.fingerprint == self._fingerprint and label.world_size == self._world_size
        ]

    def _send(self, label: CopyLabel, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        state_B = np.frombuffer(buffer.getbuffer(), np.uint8)
        for holder in self._holders[:2]:
            try:
                holder.put(label, state_B)
            except ConnectionError as error:
                _log.warning("step %d has no copy on '%s': %s", label.step, holder.node, error)


def _local_copy(value: Any) -> Any:
    """Return a state with its tensors copied to this process's memory, of shared ones the own part."""
    if isinstance(value, dict):
        return {key: _local_copy(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_local_copy(one) for one in value]
    if isinstance(value, Tensor):
        local = value.to_local() if isinstance(value, DTensor) else value
        return local.detach().to("cpu", copy=True)
    return value


def _restore(target: Any, saved: Any, where: str) -> None:
    """Write a saved state into one of the same form, in place."""
    keys = list(target) if isinstance(target, dict) else list(range(len(target)))
    others = list(saved) if isinstance(saved, dict) else list(range(len(saved)))
    if keys != others:
        raise CheckpointError(f"the copy's '{where or 'state'}' has other keys than this run's: {others}")
    for key in keys:
        here, there, name = target[key], saved[key], f"{where}.{key}".lstrip(".")
        if isinstance(here, Tensor):
            local = here.to_local() if isinstance(here, DTensor) else here
            if local.shape != there.shape:
                raise CheckpointError(f"the copy's '{name}' is {list(there.shape)}, not {list(local.shape)}")
            with torch.no_grad():
                local.copy_(there)
        elif isinstance(here, (dict, list)):
            _restore(here, there, name)
        else:
            target[key] = tuple(there) if isinstance(here, tuple) else there
