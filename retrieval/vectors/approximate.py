"""Approximate base segments on a CPU: FAISS finds candidates among codes, the matrix scores them exactly.

| kind    | structure                                          | bytes a row at D = 384 |
|---------|----------------------------------------------------|------------------------|
| ivf_sq8 | inverted lists, a byte a number                    | 396                    |
| ivf_pq  | inverted lists, 4-bit product codes in registers   | 60                     |
| rabitq  | inverted lists, rotated sign bits with two factors | 68                     |
| hnsw    | a graph over rows of a byte a number               | 384 + 260 of links     |

Every kind takes a bitmap into FAISS and drops what is not in it once more afterwards: some structures of
FAISS accept a filter and ignore it.

Sources: Jegou et al., PAMI 2011 (IVF, PQ); Andre et al., VLDB 2015 (4-bit PQ in registers); Gao and Long,
SIGMOD 2024 (RaBitQ: sign bits of a random rotation, unbiased); Malkov and Yashunin, PAMI 2018 (HNSW).

Legend: N rows, D dimensions, Q queries, K hits, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from retrieval.vectors import exact, faiss_runtime
from retrieval.vectors.faiss_runtime import api as faiss
from retrieval.vectors.notes import Note
from retrieval.vectors.probing import ListProbing
from retrieval.vectors.types import CorruptBase, SearchEffort
from retrieval.versions import IndexKind

INDEX_NAME = "vectors.faiss"
PQ_NUMBERS = 4
"""Dimensions a 4-bit product code covers; vectors are padded with zeros to a multiple."""
HNSW_LINKS = 32
"""Links of a graph node; the lowest level has twice as many."""
_HNSW_BUILD_WIDTH = 80
_MAX_HNSW_WIDTH = 1024
_MIN_ROWS_A_LIST = 39
"""Below this FAISS calls a cluster's sample too small."""
_TRAINING_ROWS_A_LIST = 64
_CLUSTERING_ROUNDS = 8
_RABITQ_QUERY_BITS = 4
"""Bits a number of the query is rounded to; 0 (exact) is eighty times slower for half a point of recall."""
FILTERED_RERANK = 2
"""A filtered query scores this many times the candidates: what is kept may lie far from it, where codes tell
neighbours apart less well than where the tuner looked."""
_TUNED_K = 10
_ROW_US: dict[str, float] = {"ivf_sq8": 0.047, "ivf_pq": 0.0055, "rabitq": 0.024, "hnsw": 0.25}
"""Microseconds a visited row takes one core at 384 dimensions."""
_RERANK_US = 0.3


class ApproximateBase:
    """A FAISS index over codes beside the matrix they were made from."""

    def __init__(
        self,
        kind: IndexKind,
        index: Any,
        matrix_ND: np.ndarray,
        structure: Mapping[str, int],
        effort: SearchEffort,
        num_threads: int = 0,
        measured_recall: float | None = None,
    ) -> None:
        """Wrap a filled FAISS index; see `build` and `opened`."""
        self.kind: IndexKind = kind
        self.matrix_ND = matrix_ND
        self.effort = effort
        self.measured_recall = measured_recall
        self._index = index
        self._structure = structure
        self._num_threads = num_threads
        self._probing: ListProbing | None = None
        self._lock = Lock()

    @property
    def resident_bytes(self) -> int:
        """Return the bytes of codes, links and centroids."""
        num_rows, dim = self.matrix_ND.shape
        return resident_bytes(self.kind, num_rows, dim)

    @property
    def max_probes(self) -> int:
        """Return the most probes that change anything."""
        return self._structure.get("num_lists", min(_MAX_HNSW_WIDTH, len(self.matrix_ND)))

    def search_us(self, effort: SearchEffort) -> float:
        """Return about how long one query takes one core, in microseconds."""
        probes = min(effort.probes, self.max_probes)
        share = probes / self._structure["num_lists"] if "num_lists" in self._structure else 0.0
        visited = share * len(self.matrix_ND) if share else probes * math.log2(len(self.matrix_ND) + 2)
        scale = self.matrix_ND.shape[1] / 384
        return scale * (visited * _ROW_US[self.kind] + _RERANK_US * effort.rerank * _TUNED_K)

    def search(
        self, queries_QD: np.ndarray, k: int, keep: np.ndarray | None, effort: SearchEffort | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's nearest rows among the candidates, exactly scored; see `VectorBase.search`."""
        effort = effort or self.effort
        if not len(queries_QD):
            return exact.padded(0, k)
        faiss_runtime.prepare(self._num_threads)
        rerank = effort.rerank if keep is None else FILTERED_RERANK * effort.rerank
        wanted = min(num_candidates(k, rerank), len(self.matrix_ND))
        if keep is None:
            _, positions_QC = self._index.search(
                queries_QD, wanted, params=self._parameters(effort.probes, wanted)
            )
            return exact.rescore(queries_QD, self.matrix_ND, positions_QC, k)
        selector = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
        probes_Q = self._filtered_probes(queries_QD, keep, effort.probes)
        positions_QC = np.empty((len(queries_QD), wanted), dtype=np.int64)
        for probes in np.unique(probes_Q).tolist():
            alike = np.flatnonzero(probes_Q == probes)
            parameters = self._parameters(probes, wanted, selector)
            _, positions_QC[alike] = self._index.search(queries_QD[alike], wanted, params=parameters)
        positions_QC[~keep[np.maximum(positions_QC, 0)]] = -1
        return exact.rescore(queries_QD, self.matrix_ND, positions_QC, k)

    def save(self, folder: Path) -> list[Path]:
        """Write the codes and the note; the matrix is the caller's."""
        path = folder / INDEX_NAME
        faiss.write_index(self._index, str(path))
        note = Note(self.kind, self.effort, self.measured_recall, self._structure)
        return [path, note.write(folder)]

    def _filtered_probes(self, queries_QD: np.ndarray, keep: np.ndarray, probes: int) -> np.ndarray:
        """Return int64[Q]: the probes a filtered search needs to see as much as an unfiltered one."""
        if self.kind == "hnsw":
            share = max(np.count_nonzero(keep), 1) / len(keep)
            return np.full(len(queries_QD), min(round(probes / share), self.max_probes), dtype=np.int64)
        with self._lock:
            if self._probing is None:
                self._probing = ListProbing.of_faiss(self._index)
        num_seen = round(min(probes / self.max_probes, 1.0) * len(keep))
        return self._probing.probes(queries_QD, keep, num_seen)

    def _parameters(self, probes: int, wanted: int, selector: Any = None) -> Any:
        probes = min(probes, self.max_probes)
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(probes, wanted), sel=selector)
        if self.kind == "rabitq":
            lists = faiss.IVFRaBitQSearchParameters(nprobe=probes, qb=_RABITQ_QUERY_BITS, sel=selector)
        else:
            lists = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        if isinstance(self._index, faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=lists)
        return lists


def num_candidates(k: int, rerank: int) -> int:
    """Return how many candidates are scored for `k` hits: `rerank` times k up to 10, with its root beyond.

    Farther hits are easier to order: the hundredth neighbour needs fewer candidates a hit than the tenth.
    """
    return max(k, round(rerank * min(k, _TUNED_K) * math.sqrt(max(k, _TUNED_K) / _TUNED_K)))


def num_lists_for(num_rows: int) -> int:
    """Return how many inverted lists suit a number of rows: 4 sqrt(N), and enough rows a list to train it."""
    return max(1, min(round(4 * math.sqrt(num_rows)), num_rows // _MIN_ROWS_A_LIST))


def resident_bytes(kind: IndexKind, num_rows: int, dim: int) -> int:
    """Return the bytes a base of this kind holds beside the matrix: codes, ids, list numbers, centroids."""
    lists = num_lists_for(num_rows) * dim * 4
    if kind == "ivf_sq8":
        return num_rows * (dim + 12) + lists
    if kind == "ivf_pq":
        return num_rows * ((math.ceil(dim / PQ_NUMBERS) + 1) // 2 + 12) + lists
    if kind == "rabitq":
        return num_rows * ((dim + 7) // 8 + 8 + 12) + lists + dim * dim * 4
    if kind == "hnsw":
        return num_rows * (dim + 2 * HNSW_LINKS * 4 + 12)
    return 0


def build(kind: IndexKind, matrix_ND: np.ndarray, num_threads: int, seed: int) -> ApproximateBase:
    """Return an untuned base over a matrix.

    Args:
        kind: `ivf_sq8`, `ivf_pq`, `rabitq` or `hnsw`.
        matrix_ND: float32[N, D] of unit vectors, N at least 1; read in blocks, so it may be mapped.
        num_threads: Threads of FAISS; 0 for all cores.
        seed: Of the training sample and the rotation.
    """
    faiss_runtime.prepare(num_threads)
    num_rows, dim = matrix_ND.shape
    if kind == "hnsw":
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _HNSW_BUILD_WIDTH
        graph.train(_sample(matrix_ND, 65_536, seed))
        _fill(graph, matrix_ND)
        return ApproximateBase(
            kind, graph, matrix_ND, {"links": HNSW_LINKS}, SearchEffort(128, 2), num_threads
        )
    num_lists = num_lists_for(num_rows)
    sample_SD = _sample(matrix_ND, num_lists * _TRAINING_ROWS_A_LIST, seed)
    transform = None
    if kind == "rabitq":
        transform = faiss.RandomRotationMatrix(dim, dim)
        transform.init(seed + 1)
    elif kind == "ivf_pq" and dim % PQ_NUMBERS:
        transform = faiss.RemapDimensionsTransform(dim, dim + PQ_NUMBERS - dim % PQ_NUMBERS, False)
    index = _lists(kind, dim if transform is None else transform.d_out, num_lists, seed)
    index.train(sample_SD if transform is None else transform.apply(sample_SD))
    if transform is not None:
        index = faiss.IndexPreTransform(transform, index)
    _fill(index, matrix_ND)
    structure = {"num_lists": num_lists}
    return ApproximateBase(kind, index, matrix_ND, structure, SearchEffort(num_lists, 40), num_threads)


def opened(folder: Path, note: Note, matrix_ND: np.ndarray, num_threads: int) -> ApproximateBase:
    """Return the base `save` wrote.

    Raises:
        CorruptBase: The file cannot be read, or belongs to another matrix.
    """
    path = folder / INDEX_NAME
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise CorruptBase(f"{path} is no FAISS index: {error}; build it again") from error
    if (index.ntotal, index.d) != matrix_ND.shape:
        raise CorruptBase(
            f"{path} holds {index.ntotal:,} x {index.d} vectors, the matrix {matrix_ND.shape}; build it again"
        )
    structure, recall = note.structure, note.measured_recall
    return ApproximateBase(note.kind, index, matrix_ND, structure, note.effort, num_threads, recall)


def _lists(kind: IndexKind, dim: int, num_lists: int, seed: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlatIP(dim)
    if kind == "ivf_sq8":
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, num_lists, faiss.ScalarQuantizer.QT_8bit, metric
        )
    elif kind == "ivf_pq":
        index = faiss.IndexIVFPQFastScan(quantizer, dim, num_lists, dim // PQ_NUMBERS, 4, metric)
    else:
        index = faiss.IndexIVFRaBitQ(quantizer, dim, num_lists, metric)
    index.cp.niter = _CLUSTERING_ROUNDS
    index.cp.max_points_per_centroid = _TRAINING_ROWS_A_LIST
    index.cp.min_points_per_centroid = 1
    index.cp.seed = seed + 1
    return index


def _sample(matrix_ND: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return a sample of rows in the order of the file, so that a mapped one is read forwards."""
    if num_rows >= len(matrix_ND):
        return np.ascontiguousarray(matrix_ND)
    rows = np.random.default_rng(seed).choice(len(matrix_ND), num_rows, replace=False)
    return matrix_ND[np.sort(rows)]


def _fill(index: Any, matrix_ND: np.ndarray) -> None:
    block_rows = 65_536
    for start in range(0, len(matrix_ND), block_rows):
        index.add(np.ascontiguousarray(matrix_ND[start : start + block_rows]))
