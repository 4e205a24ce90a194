"""The ranks of a run: alone, under torchrun, or under Ray Train; the same code in all three."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.errors import ConfigError

_BUCKET_BYTES = 25 * 2**20

Sharding = Literal["ddp", "fsdp2", "fsdp2_offload"]
"""Every rank holds all weights, or a share of each; offloaded shares wait in host memory for their layer."""

COLLECTIVE_TIMEOUT_S = 180
"""A dead rank ends the others' wait after this long; torch's own default is half an hour."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    """Its number."""
    world_size: int = 1
    """How many there are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where it computes."""

    @property
    def is_first(self) -> bool:
        """Return whether this rank writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean over ranks of each number; all ranks give the same names."""
        if self.world_size == 1:
            return values
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(names, (tensor / self.world_size).tolist(), strict=True))

    def average_gradients(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        """Give every rank the mean of the ranks' gradients, in buckets.

        Weights that FSDP2 shares between the ranks have theirs already. A weight that no pass of this rank
        used counts as 0: ranks then agree on what is summed, which DDP asks of every single pass.
        """
        if self.world_size == 1:
            return
        weights = [weight for group in groups for weight in group if not isinstance(weight, DTensor)]
        bucket: list[Tensor] = []
        for position, weight in enumerate(weights):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            bucket.append(weight.grad)
            is_full = sum(one.numel() * one.element_size() for one in bucket) >= _BUCKET_BYTES
            if is_full or position == len(weights) - 1:
                flat = torch.cat([one.flatten() for one in bucket])
                dist.all_reduce(flat)
                flat /= self.world_size
                for one, mean in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                    one.copy_(mean.view_as(one))
                bucket = []

    def from_first(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """Yield this process's place from torchrun's environment, or the only rank where there is none.

    A run alone has a process group too, of one: checkpoints are then written by the same code.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def shard_tower(tower: nn.Module, ranks: Ranks, *, offload: bool = False) -> None:
    """Share the weights of a tower between the ranks, a layer at a time (FSDP2).

    Args:
        tower: A module whose layers stand in a `ModuleList`, only ever entered by its own `forward`.
        ranks: More than one, unless weights are offloaded.
        offload: Whether weights, gradients and optimizer states are in host memory, where they are moved too.

    Raises:
        ConfigError: There are no other ranks to share with.
    """
    if ranks.world_size == 1 and not offload:
        raise ConfigError("sharding='fsdp2' needs more than one rank; use 'ddp'")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda") if offload else OffloadPolicy()
    for layers in [part for part in tower.modules() if isinstance(part, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(tower, mesh=mesh, offload_policy=policy)
