"""What every loss returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss to descend and what is worth logging beside it."""

    loss: Tensor
    """Scalar with a gradient; float64 where the inputs were, else float32."""
    metrics: Mapping[str, Tensor]
    """Detached scalars by name, on the device of the loss: read them once a log step, since reading waits."""


def mean_of(total: Tensor, count: Tensor | int, denominator: Tensor | float | None) -> Tensor:
    """Return a sum divided by what was summed, or by what the caller says.

    Args:
        total: Scalar sum over this batch.
        count: How many terms it has (tokens or questions); 0 gives 0, not NaN.
        denominator: Replaces `count`. With gradient accumulation pass the count of the whole step, with N
            data-parallel ranks whose gradients are averaged pass the count over all ranks divided by N: the
            step's gradient is then exactly that of one large batch.
    """
    if denominator is not None:
        return total / denominator
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
