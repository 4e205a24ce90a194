"""What an index holds on its device, counted against a limit, so that it can live beside an LLM engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceMemoryExceeded(Exception):
    """An index does not fit its `gpu_memory_limit`; nothing was allocated."""


class DeviceMemory:
    """A ledger: every tensor that stays, and every bound on temporaries, is taken here first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.peak_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Return what is left."""
        return self.limit_bytes - self.used_bytes

    def _take(self, purpose: str, num_bytes: int) -> None:
        if num_bytes > self.free_bytes:
            raise DeviceMemoryExceeded(
                f"{purpose} needs {num_bytes:,} bytes and {self.free_bytes:,} of gpu_memory_limit = "
                f"{self.limit_bytes:,} are free; raise gpu_memory_limit"
            )
        self.used_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def empty(
        self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return an uninitialised tensor that stays.

        Raises:
            DeviceMemoryExceeded: It does not fit.
        """
        num_bytes = dtype.itemsize
        for size in shape:
            num_bytes *= size
        self._take(purpose, num_bytes)
        return torch.empty(shape, dtype=dtype, device=device)

    @contextmanager
    def holding(self, purpose: str, num_bytes: int) -> Iterator[None]:
        """Count temporaries of at most `num_bytes` while the block runs.

        Raises:
            DeviceMemoryExceeded: They do not fit.
        """
        self._take(purpose, num_bytes)
        try:
            yield
        finally:
            self.used_bytes -= num_bytes
