"""What a base segment needs while it is built, checked against what there is before the build begins."""

from __future__ import annotations

import psutil

from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import IndexTooLarge
from retrieval.versions import IndexKind

GIB = 1024**3
CPU_KINDS_BY_SIZE: tuple[IndexKind, ...] = ("hnsw", "ivf_sq8", "rabitq", "ivf_pq", "exact")
"""Largest first; an exact base maps its matrix and needs nothing beside it."""
_TRAINING_ROWS = 65_536
_BLOCK_ROWS = 65_536


def needed_bytes(kind: IndexKind, num_rows: int, dim: int) -> int:
    """Return about what building a base takes beside the matrix: host memory, device memory for GPU kinds.

    On a host that is twice its codes (lists double as they grow, so old and new stand side by side), the
    training sample with its copy, and one block of rows.
    """
    if kind == "exact":
        return 0
    if kind in ("gpu_flat", "gpu_ivf", "gpu_cagra"):
        from retrieval.vectors import gpu

        return gpu.resident_bytes(kind, num_rows, dim)
    from retrieval.vectors import approximate

    sample = min(num_rows, max(_TRAINING_ROWS, approximate.num_lists_for(num_rows) * 64))
    return 2 * approximate.resident_bytes(kind, num_rows, dim) + (2 * sample + _BLOCK_ROWS) * dim * 4


def available_bytes(kind: IndexKind, settings: VectorSettings) -> int:
    """Return what a build of this kind may take: the configured limit, or what is free if that is less."""
    if kind in ("gpu_flat", "gpu_ivf", "gpu_cagra"):
        from retrieval.vectors import gpu

        free, limit = gpu.free_bytes(settings.device), settings.gpu_memory_limit_bytes
    else:
        free, limit = psutil.virtual_memory().available, settings.memory_limit_bytes
    return min(free, limit) if limit else free


def fits(kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings) -> bool:
    """Return whether a build has the memory it needs."""
    needed = needed_bytes(kind, num_rows, dim)
    return not needed or needed <= available_bytes(kind, settings)


def check(kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings) -> None:
    """Return if a build fits.

    Raises:
        IndexTooLarge: It does not; the message says what it needs, what there is, and which kind would fit.
    """
    if fits(kind, num_rows, dim, settings):
        return
    smaller = next(other for other in CPU_KINDS_BY_SIZE if fits(other, num_rows, dim, settings))
    is_gpu = kind.startswith("gpu_")
    limit = "gpu_memory_limit_bytes" if is_gpu else "index_memory_limit_bytes"
    raise IndexTooLarge(
        f"an index of kind '{kind}' over {num_rows:,} x {dim} vectors needs about "
        f"{needed_bytes(kind, num_rows, dim) / GIB:.2f} GiB while it is built and "
        f"{available_bytes(kind, settings) / GIB:.2f} GiB may be used; free some, raise {limit}, or use "
        f"kind '{smaller}'"
    )
