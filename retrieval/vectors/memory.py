"""What a base segment needs while it is built, checked against what there is before the build begins."""

from __future__ import annotations

import psutil

from retrieval.vectors import cuda_driver
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import IndexTooLarge
from retrieval.versions import IndexKind

GIB = 1024**3
CPU_KINDS_BY_SIZE: tuple[IndexKind, ...] = ("hnsw", "ivf_sq8", "rabitq", "ivf_pq", "exact")
"""Largest first; an exact base maps its matrix and needs nothing beside it."""
GPU_KINDS: tuple[IndexKind, ...] = ("gpu_flat", "gpu_ivf", "gpu_cagra")
BEYOND_KINDS: tuple[IndexKind, ...] = ("coded", "streamed")
"""Largest first; these live on a device that need not hold the vectors."""
_TRAINING_ROWS = 65_536
_BLOCK_ROWS = 65_536


def needed_bytes(kind: IndexKind, num_rows: int, dim: int) -> int:
    """Return about what a base takes beside the matrix: memory of its device, or of the host.

    On the host that is while it is built: twice its codes (lists double as they grow, so old and new stand
    side by side), the training sample with its copy, and one block of rows.
    """
    if kind == "exact":
        return 0
    if kind in GPU_KINDS:
        from retrieval.vectors import gpu

        return gpu.resident_bytes(kind, num_rows, dim)
    if kind in BEYOND_KINDS:
        from retrieval.vectors import beyond_device

        return beyond_device.needed_bytes(kind, num_rows, dim)
    from retrieval.vectors import approximate

    sample = min(num_rows, max(_TRAINING_ROWS, approximate.num_lists_for(num_rows) * 64))
    return 2 * approximate.resident_bytes(kind, num_rows, dim) + (2 * sample + _BLOCK_ROWS) * dim * 4


def available_bytes(kind: IndexKind, settings: VectorSettings) -> int:
    """Return what a base of this kind may take: the configured limit, or what is free if that is less.

    Raises:
        NoSuchDevice: The kind or the settings name a GPU that is not there.
    """
    limit = settings.gpu_memory_limit_bytes
    if kind in GPU_KINDS or (kind in BEYOND_KINDS and is_beyond_on_gpu(settings)):
        free = cuda_driver.free_bytes(settings.device)
        return min(free, limit) if limit else free
    free = _free_host_bytes(settings)
    return min(free, limit) if limit and kind in BEYOND_KINDS else free


def fits(kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings) -> bool:
    """Return whether a build has the memory it needs."""
    return _shortage(kind, num_rows, dim, settings, is_built=False) is None


def check(
    kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings, *, is_built: bool = False
) -> None:
    """Return if a base fits; of one that `is_built` only what stays is counted.

    Raises:
        IndexTooLarge: It does not; the message says what it needs, what there is, and which kind would fit.
        NoSuchDevice: The kind or the settings name a GPU that is not there.
    """
    shortage = _shortage(kind, num_rows, dim, settings, is_built=is_built)
    if shortage is None:
        return
    needed, available, limit = shortage
    others = CPU_KINDS_BY_SIZE if kind in CPU_KINDS_BY_SIZE else (*BEYOND_KINDS, *CPU_KINDS_BY_SIZE)
    smaller = next(other for other in others if fits(other, num_rows, dim, settings))
    raise IndexTooLarge(
        f"an index of kind '{kind}' over {num_rows:,} x {dim} vectors needs about {needed / GIB:.2f} GiB "
        f"while it is built and {available / GIB:.2f} GiB may be used; free some, raise {limit}, or use "
        f"kind '{smaller}'"
    )


def _shortage(
    kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings, *, is_built: bool
) -> tuple[int, int, str] | None:
    """Return what is needed, what there is and which setting says so, where that is too little."""
    needed = needed_bytes(kind, num_rows, dim)
    if not needed:
        return None
    available, on_device = available_bytes(kind, settings), kind not in CPU_KINDS_BY_SIZE
    if needed > available:
        return needed, available, "gpu_memory_limit_bytes" if on_device else "index_memory_limit_bytes"
    if kind in BEYOND_KINDS and not is_built:
        from retrieval.vectors import beyond_device

        needed, available = beyond_device.host_build_bytes(num_rows, dim), _free_host_bytes(settings)
        if needed > available:
            return needed, available, "index_memory_limit_bytes"
    return None


def _free_host_bytes(settings: VectorSettings) -> int:
    free, limit = psutil.virtual_memory().available, settings.memory_limit_bytes
    return min(free, limit) if limit else free


def is_beyond_on_gpu(settings: VectorSettings) -> bool:
    """Return whether the device of `BEYOND_KINDS` is a GPU.

    Raises:
        NoSuchDevice: The settings name a GPU that torch does not see.
    """
    from retrieval.vectors import beyond_device

    return beyond_device.device_of(settings) != "cpu"
