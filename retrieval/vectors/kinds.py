"""Building and opening base segments of any kind, and choosing one by size and device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrieval.vectors import memory
from retrieval.vectors.exact import ExactBase
from retrieval.vectors.notes import Note
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import CorruptBase, NoSuchDevice, VectorBase
from retrieval.versions import IndexKind

AUTO_EXACT_ROWS = 100_000
"""Up to here `auto` stays exact: 5 ms a query, 1.4 ms in a batch on one core, recall 1, nothing to build."""
AUTO_GPU_FLAT_ROWS = 2_000_000
"""Up to here `auto` keeps every row on a GPU in half precision and scans it."""
MIN_APPROXIMATE_ROWS = 1000
"""Below this the exact kind stands in for every other: too few rows to train on, nothing to gain."""


def chosen_kind(num_rows: int, dim: int, settings: VectorSettings) -> IndexKind:
    """Return the kind `auto` means for so many rows on this machine.

    Up to `AUTO_EXACT_ROWS` exact. Beyond, on a GPU flat while it fits, then inverted lists; where the vectors
    do not fit the GPU or its limit, their codes there, then lists that stream through it. On a CPU 4-bit
    product codes with exact rerank, which at recall 0.96 answer four times the queries of byte codes from a
    seventh of the memory (100k x 384, one core); where even those do not fit codes of a bit, streamed lists,
    and exact again.
    """
    if num_rows <= AUTO_EXACT_ROWS:
        return "exact"
    for kind in _by_preference(num_rows, settings):
        if memory.fits(kind, num_rows, dim, settings):
            return kind
    return "exact"


def _by_preference(num_rows: int, settings: VectorSettings) -> Iterator[IndexKind]:
    """Yield kinds, best first; a device is asked after only once the kinds before do not fit."""
    if settings.device != "cpu" and _has_gpu(settings):
        if num_rows <= AUTO_GPU_FLAT_ROWS:
            yield "gpu_flat"
        yield "gpu_ivf"
        if memory.is_beyond_on_gpu(settings):
            yield from memory.BEYOND_KINDS
    yield "ivf_pq"
    yield from memory.BEYOND_KINDS


def build_base(
    matrix_ND: np.ndarray,
    kind: IndexKind = "auto",
    settings: VectorSettings | None = None,
    queries_QD: np.ndarray | None = None,
    folder: Path | None = None,
) -> VectorBase:
    """Return a base segment over a matrix, tuned to the recall floor.

    Args:
        matrix_ND: float32[N, D] of unit vectors, C-contiguous; in memory or mapped from a file, which must
            outlive the base. N may be 0.
        kind: Which structure; `auto` chooses by size and device.
        settings: Threads, memory, device and recall floor.
        queries_QD: float32[Q, D] of real queries to tune on; None to hold rows out as queries.
        folder: Where `save` will write, and where kinds larger than memory write at once; None to keep all in
            memory.

    Returns:
        The base; `measured_recall` says what the tuner reached, which can be below the floor.

    Raises:
        IndexTooLarge: The build needs more memory than there is.
        NoSuchDevice: The kind or the settings name a GPU that cannot be had.
        ValueError: The matrix is no C-contiguous float32[N, D].
    """
    settings = settings or VectorSettings()
    _check_matrix(matrix_ND)
    num_rows, dim = matrix_ND.shape
    if kind in memory.GPU_KINDS:
        from retrieval.vectors import gpu

        gpu.require(kind)
    if kind == "auto":
        kind = chosen_kind(num_rows, dim, settings)
    if kind == "exact" or num_rows < MIN_APPROXIMATE_ROWS:
        return ExactBase(matrix_ND, settings.num_threads)
    memory.check(kind, num_rows, dim, settings)
    base = _built(kind, matrix_ND, settings, folder)
    from retrieval.vectors import tuner

    tuned = tuner.tune(base, settings.recall_floor, settings.num_threads, settings.seed, queries_QD)
    base.effort, base.measured_recall = tuned.effort, tuned.recall
    return base


def open_base(folder: Path, matrix_ND: np.ndarray, settings: VectorSettings | None = None) -> VectorBase:
    """Return the base whose `save` filled a folder; GPU kinds are built again from the matrix.

    Args:
        folder: What `save` was given; the caller has checked its files against a manifest.
        matrix_ND: The same rows the base was built from.
        settings: Threads and device.

    Raises:
        CorruptBase: The files are not what `save` wrote, or the matrix is another one.
        IndexTooLarge: It was saved on a device that has no room for it now.
        NoSuchDevice: A GPU kind was saved and there is no GPU now.
    """
    settings = settings or VectorSettings()
    _check_matrix(matrix_ND)
    note = Note.read(folder)
    if note.kind == "exact":
        return ExactBase(matrix_ND, settings.num_threads)
    if not len(matrix_ND):
        raise CorruptBase(f"{folder} describes a {note.kind} base, the matrix has no rows; build it again")
    if note.kind in memory.GPU_KINDS:
        from retrieval.vectors import gpu

        gpu.require(note.kind)
        num_rows, dim = matrix_ND.shape
        memory.check(note.kind, num_rows, dim, settings)
        base = _built(note.kind, matrix_ND, settings, None)
        base.effort, base.measured_recall = note.effort, note.measured_recall
        return base
    if note.kind in memory.BEYOND_KINDS:
        from retrieval.vectors import beyond_device

        num_rows, dim = matrix_ND.shape
        memory.check(note.kind, num_rows, dim, settings, is_built=True)
        return beyond_device.opened(folder, note, matrix_ND, settings)
    from retrieval.vectors import approximate

    return approximate.opened(folder, note, matrix_ND, settings.num_threads)


def _built(
    kind: IndexKind, matrix_ND: np.ndarray, settings: VectorSettings, folder: Path | None
) -> VectorBase:
    if kind in memory.GPU_KINDS:
        from retrieval.vectors import gpu

        return gpu.build(kind, matrix_ND, settings.device, settings.seed)
    if kind in memory.BEYOND_KINDS:
        from retrieval.vectors import beyond_device

        return beyond_device.build(kind, matrix_ND, settings, folder)
    from retrieval.vectors import approximate

    return approximate.build(kind, matrix_ND, settings.num_threads, settings.seed)


def _has_gpu(settings: VectorSettings) -> bool:
    """Return whether FAISS sees a GPU.

    Raises:
        NoSuchDevice: The settings name one and it sees none.
    """
    from retrieval.vectors import faiss_runtime

    if faiss_runtime.num_gpus():
        return True
    if settings.device == "auto":
        return False
    raise NoSuchDevice(
        f"vector_device is '{settings.device}' and FAISS sees no GPU; set vector_device to 'auto' or 'cpu'"
    )


def _check_matrix(matrix_ND: np.ndarray) -> None:
    if matrix_ND.ndim != 2 or matrix_ND.dtype != np.float32 or not matrix_ND.flags.c_contiguous:
        raise ValueError(
            f"the matrix is {matrix_ND.dtype} of shape {matrix_ND.shape}; "
            "it must be C-contiguous float32[N, D]"
        )
