"""Base segments larger than the device: codes resident with exact rerank, or full lists that stream through.

| kind     | on the device                              | from host memory or the segment's files           |
|----------|--------------------------------------------|---------------------------------------------------|
| coded    | a bit a number and two bytes a row         | candidates, scored exactly from the mapped matrix |
| streamed | the centroids and a cache of list pages    | the lists in float16, mapped; each page a batch   |
|          |                                            | wants crosses once, in an order that hides copies |

The device is a GPU that torch sees, or this machine's own memory in its place; either way a base holds at
most `gpu_memory_limit_bytes` there, temporaries included. What asks for more than that leaves room for, such
as very many hits at once, is answered exactly from the matrix. Final scores are those of every other kind.

Legend: N rows, D dimensions, Q queries, K hits, C candidates, L lists.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from retrieval.streamed import (
    CodedIndex,
    CudaDevice,
    DeviceMemoryExceeded,
    HostLists,
    SimulatedDevice,
    StreamedIndex,
)
from retrieval.streamed.coarse import training_bytes
from retrieval.streamed.codes import Codes
from retrieval.streamed.devices import Device
from retrieval.streamed.host_lists import InvalidLists
from retrieval.vectors import exact, memory
from retrieval.vectors.approximate import FILTERED_RERANK, num_candidates, num_lists_for
from retrieval.vectors.cuda_driver import ordinal
from retrieval.vectors.notes import Note
from retrieval.vectors.probing import ListProbing
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import CorruptBase, IndexTooLarge, NoSuchDevice, SearchEffort
from retrieval.versions import IndexKind

LISTS_FOLDER = "lists"
_PARTS = ("centroids", "offsets", "ids", "rotation", "bits", "factors")
"""What a coded base is saved as, an array a file."""
_CODED_WORK_BYTES = 16 * 2**20
"""Room beside the codes for a batch of queries and one kernel."""
_FREE_SHARE = 0.8
"""Part of what a GPU has free that a base takes when it was given no limit."""
_HOST_CACHE_BYTES = 2**30
"""Most memory the page cache takes where there is neither a GPU nor a limit."""
_HOST_WORK_BYTES = 128 * 2**20
"""Room for batches and kernels beside resident codes there."""
_SPARE = 8
"""Hits beyond those wanted: which of two nearly equal rows is better is decided by the exact scores."""
_ROW_US: dict[IndexKind, float] = {"coded": 0.15, "streamed": 0.1}
"""Microseconds a visited row takes one core at 384 dimensions, in batches of 64 (40k rows, 800 lists)."""
_LIST_US = 10.0
"""Microseconds a visited list takes beside its rows."""
_BUS_BYTES_PER_US = 10_000
_LAUNCH_US = 50.0
_RERANK_US = 0.3
_TUNED_K = 10


def device_of(settings: VectorSettings) -> str:
    """Return the torch device that a base of these kinds uses: a GPU where there is one, else `cpu`.

    Raises:
        NoSuchDevice: The settings name a GPU that torch does not see.
    """
    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available() and ordinal(settings.device) < torch.cuda.device_count():
        return "cuda" if settings.device == "auto" else settings.device
    if settings.device == "auto":
        return "cpu"
    raise NoSuchDevice(
        f"vector_device is '{settings.device}' and torch sees no such GPU; set it to 'auto' or 'cpu'"
    )


def page_rows_for(num_rows: int) -> int:
    """Return the rows of a page: the power of two that holds a list of mean length, from 32 to 512."""
    mean = num_rows // num_lists_for(num_rows)
    return min(512, max(32, 1 << mean.bit_length()))


def needed_bytes(kind: IndexKind, num_rows: int, dim: int) -> int:
    """Return what a base needs on its device: its codes, or for lists a page cache of two pages."""
    num_lists = num_lists_for(num_rows)
    if kind == "streamed":
        return StreamedIndex.needed_bytes(num_lists, dim, 2 * dim, page_rows_for(num_rows))
    width_bytes = -(-dim // 8)
    fixed = 4 * dim * (num_lists + 8 * width_bytes)
    return num_rows * (width_bytes + 2) + fixed + _CODED_WORK_BYTES


def host_build_bytes(num_rows: int, dim: int) -> int:
    """Return what a build takes in host memory at most: the training sample, and the order of the rows."""
    return training_bytes(num_rows, num_lists_for(num_rows), dim) + 16 * num_rows


class BeyondDeviceBase:
    """A `CodedIndex` or `StreamedIndex` beside the matrix it was made from."""

    def __init__(
        self,
        index: CodedIndex | StreamedIndex,
        lists: HostLists,
        matrix_ND: np.ndarray,
        effort: SearchEffort,
        *,
        codes: Codes | None = None,
        folder: Path | None = None,
        on_gpu: bool = False,
        num_threads: int = 0,
        measured_recall: float | None = None,
    ) -> None:
        """Wrap an index; see `build` and `opened`.

        Args:
            index: What finds candidates; closed when this base is collected.
            lists: Which rows are in which list.
            matrix_ND: float32[N, D].
            effort: What searches may spend.
            codes: The codes of a coded index, for `save`.
            folder: Where `save` need not write the lists again.
            on_gpu: Whether the device is a GPU.
            num_threads: Threads of exact searches; 0 for all cores.
            measured_recall: Recall@10 at `effort`.
        """
        self.kind: IndexKind = "streamed" if codes is None else "coded"
        self.matrix_ND = matrix_ND
        self.effort = effort
        self.measured_recall = measured_recall
        self._index, self._lists, self._codes, self._folder = index, lists, codes, folder
        self._on_gpu = on_gpu
        self._num_threads = num_threads
        self._probing: ListProbing | None = None
        self._lock = Lock()
        # The device's memory goes with the base; at the end of the process it goes anyway.
        weakref.finalize(self, index.close).atexit = False

    @property
    def resident_bytes(self) -> int:
        """Return the memory held on the device."""
        return self._index.resident_bytes

    @property
    def max_probes(self) -> int:
        """Return the lists there are."""
        return self._lists.num_lists

    def search_us(self, effort: SearchEffort) -> float:
        """Return about how long one query of a batch takes, in microseconds.

        On a GPU that is the launch, and for lists their way over the bus, taken at 10 GB/s.
        """
        num_rows, dim = self.matrix_ND.shape
        probes = min(effort.probes, self.max_probes)
        visited = probes / self.max_probes * num_rows
        rerank_us = _RERANK_US * effort.rerank * _TUNED_K * dim / 384 if self.kind == "coded" else 0.0
        if not self._on_gpu:
            return probes * _LIST_US + visited * _ROW_US[self.kind] * dim / 384 + rerank_us
        moved = visited * self._lists.row_bytes if self.kind == "streamed" else 0.0
        return _LAUNCH_US + moved / _BUS_BYTES_PER_US + rerank_us

    def search(
        self, queries_QD: np.ndarray, k: int, keep: np.ndarray | None, effort: SearchEffort | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's nearest rows of the lists visited, exactly scored; see `VectorBase.search`."""
        effort = effort or self.effort
        if not len(queries_QD):
            return exact.padded(0, k)
        rerank = effort.rerank if keep is None else FILTERED_RERANK * effort.rerank
        probes: int | np.ndarray = min(effort.probes, self.max_probes)
        if keep is not None:
            probes = self._filtered_probes(queries_QD, keep, effort.probes)
        fetched = min(k + _SPARE, len(self.matrix_ND))
        try:
            if isinstance(self._index, CodedIndex):
                wanted = min(num_candidates(k, rerank), len(self.matrix_ND))
                _, positions_QC = self._index.search(queries_QD, fetched, keep, nprobe=probes, rerank=wanted)
            else:
                _, positions_QC = self._index.search(queries_QD, fetched, keep, nprobe=probes)
        except (DeviceMemoryExceeded, torch.OutOfMemoryError):
            return exact.search(queries_QD, self.matrix_ND, k, keep, self._num_threads)
        return exact.rescore(queries_QD, self.matrix_ND, positions_QC, k)

    def save(self, folder: Path) -> list[Path]:
        """Write lists or codes, and the note; the matrix is the caller's."""
        note = Note(self.kind, self.effort, self.measured_recall, {"num_lists": self.max_probes})
        if self._codes is None:
            if self._folder != folder / LISTS_FOLDER:
                self._lists.save(folder / LISTS_FOLDER)
            files = sorted((folder / LISTS_FOLDER).iterdir())
        else:
            lists, codes = self._lists, self._codes
            arrays = (lists.centroids_CD, lists.offsets_C1, lists.ids_N)
            arrays = (*arrays, codes.rotation_DW, codes.bits_NB, codes.factor_N)
            files = [folder / f"{name}.npy" for name in _PARTS]
            for path, array in zip(files, arrays, strict=True):
                np.save(path, array)
        return [*files, note.write(folder)]

    def _filtered_probes(self, queries_QD: np.ndarray, keep: np.ndarray, probes: int) -> np.ndarray:
        """Return int64[Q]: the lists a filtered search needs to see as much as an unfiltered one."""
        with self._lock:
            if self._probing is None:
                list_of_N = np.empty(len(keep), dtype=np.int32)
                sizes_L = np.diff(self._lists.offsets_C1)
                list_of_N[self._lists.ids_N] = np.repeat(np.arange(len(sizes_L), dtype=np.int32), sizes_L)
                self._probing = ListProbing(list_of_N, self._lists.centroids_CD)
        num_seen = round(min(probes / self.max_probes, 1.0) * len(keep))
        return self._probing.probes(queries_QD, keep, num_seen)


def build(
    kind: IndexKind, matrix_ND: np.ndarray, settings: VectorSettings, folder: Path | None = None
) -> BeyondDeviceBase:
    """Return an untuned base over a matrix.

    Args:
        kind: `coded` or `streamed`.
        matrix_ND: float32[N, D] of unit vectors, N at least 1; read in blocks, so it may be mapped.
        settings: Device, limits, threads, seed.
        folder: Where streamed lists are written, to be mapped from there; None keeps them in memory.

    Raises:
        IndexTooLarge: The device has no room for it.
        NoSuchDevice: The settings name a GPU that torch does not see.
    """
    num_rows, dim = matrix_ND.shape
    device, num_lists = device_of(settings), num_lists_for(num_rows)
    limit = _limit_bytes(kind, num_rows, dim, settings)
    # The sample may be larger than the index: then it is trained beside the device.
    trained_on = device if training_bytes(num_rows, num_lists, dim) <= limit else "cpu"
    effort = SearchEffort(num_lists, 40)
    if kind == "coded":
        lists = HostLists.grouped(matrix_ND, num_lists, seed=settings.seed, device=trained_on)
        codes = Codes.encode(lists, matrix_ND, seed=settings.seed, device=trained_on)
        return _resident(lists, matrix_ND, settings, effort, codes=codes)
    lists = HostLists.build(
        matrix_ND,
        num_lists,
        folder=None if folder is None else folder / LISTS_FOLDER,
        dtype="float16",
        seed=settings.seed,
        device=trained_on,
    )
    return _resident(
        lists, matrix_ND, settings, effort, folder=None if folder is None else folder / LISTS_FOLDER
    )


def opened(folder: Path, note: Note, matrix_ND: np.ndarray, settings: VectorSettings) -> BeyondDeviceBase:
    """Return the base `save` wrote, its lists or codes mapped.

    Raises:
        CorruptBase: The files cannot be read, or belong to another matrix.
        IndexTooLarge: The device has no room for it.
        NoSuchDevice: The settings name a GPU that torch does not see.
    """
    codes = None
    try:
        if note.kind == "streamed":
            lists = HostLists.open(folder / LISTS_FOLDER)
        else:
            # Copy on write: torch warns of arrays that cannot be written to.
            parts = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _PARTS}
            no_vectors = np.empty((0, matrix_ND.shape[1]), dtype=np.float32)
            lists = HostLists(parts["centroids"], parts["offsets"], np.asarray(parts["ids"]), no_vectors)
            codes = Codes(parts["rotation"], parts["bits"], parts["factors"])
    except (InvalidLists, OSError, ValueError) as error:
        raise CorruptBase(f"{folder} holds no {note.kind} index: {error}; build it again") from error
    if (lists.num_rows, lists.dim) != matrix_ND.shape:
        raise CorruptBase(
            f"{folder} holds {lists.num_rows:,} x {lists.dim} vectors, the matrix {matrix_ND.shape}; "
            "build it again"
        )
    base = _resident(lists, matrix_ND, settings, note.effort, codes=codes, folder=None)
    base.measured_recall = note.measured_recall
    return base


def _resident(
    lists: HostLists,
    matrix_ND: np.ndarray,
    settings: VectorSettings,
    effort: SearchEffort,
    *,
    codes: Codes | None = None,
    folder: Path | None = None,
) -> BeyondDeviceBase:
    """Return a base once what stays on the device is there."""
    num_rows, dim = matrix_ND.shape
    device, page_rows = _device(settings), page_rows_for(num_rows)
    kind: IndexKind = "streamed" if codes is None else "coded"
    limit = _limit_bytes(kind, num_rows, dim, settings)
    threads = settings.num_threads or torch.get_num_threads()
    try:
        if codes is None:
            index = StreamedIndex(lists, gpu_memory_limit=limit, device=device, page_rows=page_rows)
        else:
            index = CodedIndex(
                lists,
                codes,
                matrix_ND,
                gpu_memory_limit=limit,
                device=device,
                page_rows=page_rows,
                threads=threads,
            )
    except (DeviceMemoryExceeded, torch.OutOfMemoryError) as error:
        raise IndexTooLarge(
            f"an index of kind '{kind}' over {num_rows:,} x {dim} vectors: {error}; raise "
            "gpu_memory_limit_bytes, or use kind 'exact'"
        ) from error
    return BeyondDeviceBase(
        index,
        lists,
        matrix_ND,
        effort,
        codes=codes,
        folder=folder,
        on_gpu=device.where.type != "cpu",
        num_threads=settings.num_threads,
    )


def _limit_bytes(kind: IndexKind, num_rows: int, dim: int, settings: VectorSettings) -> int:
    """Return what a base may hold on its device: the limit given, or a share of what is free."""
    free = memory.available_bytes(kind, settings)
    if settings.gpu_memory_limit_bytes:
        return free
    if device_of(settings) != "cpu":
        return int(free * _FREE_SHARE)
    needed = needed_bytes(kind, num_rows, dim)
    if kind == "streamed":
        return max(needed, min(_HOST_CACHE_BYTES, free // 4))
    return min(free, needed + _HOST_WORK_BYTES)


def _device(settings: VectorSettings) -> Device:
    name = device_of(settings)
    # Lists are short: scored one by one, the calls would take longer than the arithmetic.
    return SimulatedDevice(batched=True) if name == "cpu" else CudaDevice(name)
