"""Rows of all ranks in one tensor, with the gradient flowing back to the rank that made them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank_and_world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) when nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather_rows(rows_ND: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the rows of rank 0, then those of rank 1, and so on.

    Backwards every rank receives the sum over all ranks of the gradients of its rows. Each rank's loss is a
    mean over its own questions; averaging parameter gradients over ranks, as DDP and FSDP do, then gives the
    gradient of the mean over all questions.

    Args:
        rows_ND: [N, ...] of the same shape and dtype on every rank; every rank must call.
        group: Process group, the default one when None.

    Returns:
        [R * N, ...]; the tensor itself when there is one rank.
    """
    if rank_and_world(group)[1] == 1:
        return rows_ND
    return _GatherRows.apply(rows_ND, group)


class _GatherRows(torch.autograd.Function):
    """All-gather forwards, reduce-scatter backwards.

    `torch.distributed.nn.all_gather` and `all_gather_into_tensor` are deprecated in PyTorch 2.13, and their
    successors are missing from 2.11; these two collectives are in both.
    """

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Return the rows of every rank."""
        ctx.group = group
        world = dist.get_world_size(group)
        gathered = [torch.empty_like(rows_ND, memory_format=torch.contiguous_format) for _ in range(world)]
        dist.all_gather(gathered, rows_ND.contiguous(), group=group)
        return torch.cat(gathered)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the name of `ctx`
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        """Return the summed gradient of this rank's rows."""
        (grad,) = grads
        by_rank = list(grad.contiguous().chunk(dist.get_world_size(ctx.group)))
        own = torch.empty_like(by_rank[0])
        dist.reduce_scatter(own, by_rank, op=dist.ReduceOp.SUM, group=ctx.group)
        return own, None
