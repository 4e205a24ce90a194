"""Base segments on a GPU: flat, inverted lists, CAGRA; the host checks every result against its filter.

The classic classes (`faiss-gpu` wheel) accept a filter and ignore it; the cuVS ones (`faiss-gpu-cuvs`) turn
it into a bitset. So a filter goes in only where cuVS is, candidates are over-fetched where it is not, and in
both cases the host drops every row that is not kept and scores the rest exactly from the matrix. A query left
with too few rows is answered exactly by `VectorSegments`.

GPU indexes have no delete and no update (tombstones are a filter here), and `StandardGpuResources` is not
thread-safe: one lock around one resource. Its scratch defaults to 1.5 GiB; it is capped, since a language
model's KV cache may share the device.

Sources: faiss/gpu/GpuIndex*.h of 1.15.1 and the Python layer of both wheels; Ootomo et al., ICDE 2024
(CAGRA). Classes are looked up by name, so that the CPU wheel can import this file.

Legend: N rows, D dimensions, Q queries, K hits, C candidates.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from retrieval.vectors import exact
from retrieval.vectors.approximate import num_candidates, num_lists_for
from retrieval.vectors.cuda_driver import ordinal
from retrieval.vectors.faiss_runtime import api as faiss
from retrieval.vectors.faiss_runtime import num_gpus
from retrieval.vectors.notes import Note
from retrieval.vectors.types import NoSuchDevice, SearchEffort
from retrieval.versions import IndexKind

SCRATCH_BYTES = 256 * 1024 * 1024
_CLASSES: dict[str, str] = {
    "gpu_flat": "GpuIndexFlatIP",
    "gpu_ivf": "GpuIndexIVFScalarQuantizer",
    "gpu_cagra": "GpuIndexCagra",
}
_MAX_K_CLASSIC = 2048
_MAX_K_CUVS = 16_384
_CAGRA_DEGREE = 64
_BLOCK_ROWS = 65_536
_TRAINING_ROWS_A_LIST = 64


def has_cuvs() -> bool:
    """Return whether the installed FAISS was built with cuVS: then GPU searches honour filters."""
    return hasattr(faiss, "GpuIndexCagra")


def require(kind: IndexKind) -> None:
    """Return if this process can build the kind.

    Raises:
        NoSuchDevice: The installed FAISS lacks the class, or there is no GPU.
    """
    name = _CLASSES[kind]
    if not hasattr(faiss, name):
        wheel = "faiss-gpu-cuvs" if kind == "gpu_cagra" else "faiss-gpu-cuvs or faiss-gpu"
        raise NoSuchDevice(
            f"index kind '{kind}' needs faiss.{name}, which the installed FAISS {faiss.__version__} lacks; "
            f"install {wheel} in place of it, or use a CPU kind such as ivf_pq"
        )
    if num_gpus() == 0:
        raise NoSuchDevice(
            f"index kind '{kind}' needs a GPU and FAISS sees none; use a CPU kind such as ivf_pq"
        )


def resident_bytes(kind: IndexKind, num_rows: int, dim: int) -> int:
    """Return the device memory a base of this kind takes, scratch included."""
    if kind == "gpu_flat":
        return num_rows * dim * 2 + SCRATCH_BYTES
    if kind == "gpu_ivf":
        return num_rows * (dim + 8) + num_lists_for(num_rows) * dim * 4 + SCRATCH_BYTES
    return num_rows * (dim * 4 + _CAGRA_DEGREE * 4) + SCRATCH_BYTES


class GpuBase:
    """A GPU index beside the matrix it was made from."""

    def __init__(
        self,
        kind: IndexKind,
        index: Any,
        matrix_ND: np.ndarray,
        effort: SearchEffort,
        resources: Any,
        *,
        honours_filters: bool,
        num_lists: int = 0,
    ) -> None:
        """Wrap a filled index; see `build`."""
        self.kind: IndexKind = kind
        self.matrix_ND = matrix_ND
        self.effort = effort
        self.measured_recall: float | None = None
        self._index = index
        self._resources = resources
        self._honours_filters = honours_filters
        self._num_lists = num_lists
        self._lock = Lock()

    @property
    def resident_bytes(self) -> int:
        """Return the device memory it takes."""
        return resident_bytes(self.kind, *self.matrix_ND.shape)

    @property
    def max_probes(self) -> int:
        """Return the most probes that change anything."""
        if self.kind == "gpu_flat":
            return 1
        return min(self._num_lists or 512, self._max_k)

    def search_us(self, effort: SearchEffort) -> float:
        """Return 50: a GPU search costs its launch and its copies, hardly its rows."""
        return 50.0

    def search(
        self, queries_QD: np.ndarray, k: int, keep: np.ndarray | None, effort: SearchEffort | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's nearest rows among the candidates, exactly scored; see `VectorBase.search`."""
        effort = effort or self.effort
        if not len(queries_QD):
            return exact.padded(0, k)
        wanted = num_candidates(k, effort.rerank)
        passed, probes = keep if self._honours_filters else None, effort.probes
        if keep is not None:
            share = max(np.count_nonzero(keep), 1) / len(keep)
            probes = round(probes / share)
            wanted = wanted if self._honours_filters else round(2 * wanted / share)
        wanted = min(wanted, self._max_k, len(self.matrix_ND))
        with self._lock:
            parameters = self._parameters(probes, wanted, passed)
            _, positions_QC = self._index.search(queries_QD, wanted, params=parameters)
        # CAGRA marks missing rows by ids beyond the last.
        positions_QC = np.where((positions_QC >= 0) & (positions_QC < len(self.matrix_ND)), positions_QC, -1)
        if keep is not None:
            positions_QC[~keep[np.maximum(positions_QC, 0)]] = -1
        return exact.rescore(queries_QD, self.matrix_ND, positions_QC, k)

    def save(self, folder: Path) -> list[Path]:
        """Write the note alone: the device's structure is built again from the matrix when it is opened."""
        return [Note(self.kind, self.effort, self.measured_recall).write(folder)]

    @property
    def _max_k(self) -> int:
        return _MAX_K_CUVS if self._honours_filters else _MAX_K_CLASSIC

    def _parameters(self, probes: int, wanted: int, keep: np.ndarray | None) -> Any:
        selector = None if keep is None else faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
        if self.kind == "gpu_flat":
            return None if selector is None else faiss.SearchParameters(sel=selector)
        if self.kind == "gpu_ivf":
            return faiss.SearchParametersIVF(nprobe=min(probes, self.max_probes), sel=selector)
        # CAGRA wants its candidate list a multiple of 32 that holds the answer.
        itopk = -(-max(min(probes, self.max_probes), wanted) // 32) * 32
        return faiss.SearchParametersCagra(itopk_size=itopk, sel=selector)


def build(kind: IndexKind, matrix_ND: np.ndarray, device: str, seed: int) -> GpuBase:
    """Return an untuned base on a GPU.

    Raises:
        NoSuchDevice: See `require`.
    """
    require(kind)
    num_rows, dim = matrix_ND.shape
    cuvs, metric = has_cuvs(), faiss.METRIC_INNER_PRODUCT
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(SCRATCH_BYTES)
    if kind == "gpu_cagra":
        config = faiss.GpuIndexCagraConfig()
        config.graph_degree = _CAGRA_DEGREE
        config.device = ordinal(device)
        index = faiss.GpuIndexCagra(resources, dim, metric, config)
        # CAGRA builds its graph in `train` and takes no later rows.
        index.train(np.ascontiguousarray(matrix_ND))
        return GpuBase(kind, index, matrix_ND, SearchEffort(128, 2), resources, honours_filters=cuvs)
    if kind == "gpu_flat":
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        config.device, config.use_cuvs = ordinal(device), cuvs
        index, num_lists, effort = faiss.GpuIndexFlatIP(resources, dim, config), 0, SearchEffort(1, 2)
    else:
        num_lists = num_lists_for(num_rows)
        config = faiss.GpuIndexIVFScalarQuantizerConfig()
        # cuVS has no scalar quantizer: this one is classic in both wheels, so its filters are never believed.
        config.device, config.use_cuvs, cuvs = ordinal(device), False, False
        index = faiss.GpuIndexIVFScalarQuantizer(
            resources, dim, num_lists, faiss.ScalarQuantizer.QT_8bit, metric, True, config
        )
        rows = np.random.default_rng(seed).permutation(num_rows)[: num_lists * _TRAINING_ROWS_A_LIST]
        index.train(matrix_ND[np.sort(rows)])
        effort = SearchEffort(num_lists, 4)
    for start in range(0, num_rows, _BLOCK_ROWS):
        index.add(np.ascontiguousarray(matrix_ND[start : start + _BLOCK_ROWS]))
    return GpuBase(kind, index, matrix_ND, effort, resources, honours_filters=cuvs, num_lists=num_lists)
