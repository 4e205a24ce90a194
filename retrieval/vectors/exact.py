"""Exact search over a matrix, with and without a bitmap, and the scoring that every kind ends with.

How a bitmap is answered was measured (100k x 384, one core, queries a second; FAISS's own selector scans
row by row and never reaches BLAS):

| kept | batch | FAISS selector | copy kept rows in blocks, BLAS | over-fetch, then filter |
|------|-------|----------------|--------------------------------|-------------------------|
| 90 % | 32    | 151            | 677                            | 689                     |
| 50 % | 32    | 110            | 1,095                          | 706                     |
| 10 % | 32    | 473            | 5,089                          | 615, mostly too few     |
| 50 % | 1     | 96             | 79                             | 206                     |
| 10 % | 1     | 422            | 349                            | 119, too few            |

So batches copy, single queries over-fetch while the filter keeps much, and both are exact: over-fetching is
believed only where it found k kept rows, since the k best of the kept are then among them. Where few rows are
left out, those that died since the rows were laid down, every batch fetches as many more, which suffices by
itself and costs no more than a scan of all (100k rows, 1,024 more: 111 against 104 ms a batch of 32; copying
135).

Final scores are sums in float64, rounded once: a matrix product adds in an order that depends on the batch
and on the row's place, so two shards would disagree in the last bit about the same chunk.

Legend: N rows, D dimensions, Q queries, K hits, C candidates, B rows of a block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from retrieval.vectors.notes import Note
from retrieval.vectors.types import SearchEffort

_BLOCK_ROWS = 4096
_SMALL_BATCH = 4
_MAX_LEFT_OUT = 1024
"""Most rows left out for which every query fetches as many more."""
_MIN_OVERFETCH_SHARE = 0.25
_MAX_OVERFETCH = 2048
_MAX_RESCORED_NUMBERS = 8_000_000
"""Numbers gathered at once while rescoring: 64 MB in float64."""


def search(
    queries_QD: np.ndarray, rows_ND: np.ndarray, k: int, keep: np.ndarray | None, num_threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's k nearest kept rows exactly, padded as `VectorBase.search` says.

    Args:
        queries_QD: float32[Q, D], C-contiguous.
        rows_ND: float32[N, D], C-contiguous; may be mapped from a file.
        k: Hits wanted.
        keep: bool[N] or None for all rows.
        num_threads: Threads of FAISS; 0 for all cores.
    """
    from retrieval.vectors import faiss_runtime

    faiss_runtime.prepare(num_threads)
    num_kept = len(rows_ND) if keep is None else int(np.count_nonzero(keep))
    wanted = min(k, num_kept)
    if not wanted or not len(queries_QD):
        return padded(len(queries_QD), k)
    # A few more than wanted: which of two nearly equal rows is better is decided by `rescore`.
    fetched = min(wanted + 8, num_kept)
    num_left_out = len(rows_ND) - num_kept
    if keep is None or not num_left_out:
        _, positions_QC = faiss_runtime.knn(queries_QD, rows_ND, fetched)
    elif num_left_out <= min(_MAX_LEFT_OUT, num_kept):
        _, found_QC = faiss_runtime.knn(queries_QD, rows_ND, fetched + num_left_out)
        positions_QC, _ = _first_kept(found_QC, keep, fetched)
    elif len(queries_QD) <= _SMALL_BATCH and num_kept >= _MIN_OVERFETCH_SHARE * len(rows_ND):
        positions_QC = _overfetched(queries_QD, rows_ND, fetched, keep, num_kept)
    else:
        positions_QC = _copied(queries_QD, rows_ND, fetched, keep)
    return rescore(queries_QD, rows_ND, positions_QC, k)


def merged(
    scores_QA: np.ndarray, positions_QA: np.ndarray, scores_QB: np.ndarray, positions_QB: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of two results of the same queries, best first, ties by position; pads last."""
    scores = np.concatenate([scores_QA, scores_QB], axis=1)
    positions = np.concatenate([positions_QA, positions_QB], axis=1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def rescore(
    queries_QD: np.ndarray, rows_ND: np.ndarray, positions_QC: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of each query's candidates by their exact scores, best first, ties by position.

    Args:
        queries_QD: float32[Q, D].
        rows_ND: float32[N, D].
        positions_QC: int64[Q, C] of distinct rows; -1 for none.
        k: Hits wanted; fewer candidates give pads.
    """
    num_queries, num_candidates = positions_QC.shape
    scores_QK, found_QK = padded(num_queries, k)
    at_once = max(1, _MAX_RESCORED_NUMBERS // max(1, num_candidates * rows_ND.shape[1]))
    for start in range(0, num_queries, at_once):
        part = slice(start, start + at_once)
        queries, positions = queries_QD[part], positions_QC[part]
        if num_candidates > 2 * (k + 8):
            positions = _shortlist(queries, rows_ND, positions, k + 8)
        rows = rows_ND[np.maximum(positions, 0)].astype(np.float64)
        exact = np.einsum("qd,qcd->qc", queries.astype(np.float64), rows).astype(np.float32)
        exact[positions < 0] = -np.inf
        order = np.lexsort((positions, -exact), axis=1)[:, :k]
        width = order.shape[1]
        scores_QK[part, :width] = np.take_along_axis(exact, order, axis=1)
        found_QK[part, :width] = np.take_along_axis(positions, order, axis=1)
    return scores_QK, found_QK


def scan_us(dim: int, num_kept: int, num_queries: int, *, is_all: bool) -> float:
    """Return about how long an exact scan takes one core per query, in microseconds; see the table above."""
    all_us, some_us = (0.014, 0.018) if num_queries > _SMALL_BATCH else (0.046, 0.1)
    return num_kept * (all_us if is_all else some_us) * dim / 384


def padded(num_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a result without hits: float32[Q, k] of -inf and int64[Q, k] of -1."""
    return (
        np.full((num_queries, k), -np.inf, dtype=np.float32),
        np.full((num_queries, k), -1, dtype=np.int64),
    )


def _shortlist(
    queries_QD: np.ndarray, rows_ND: np.ndarray, positions_QC: np.ndarray, num_kept: int
) -> np.ndarray:
    """Return the best candidates by float32 scores, int64[Q, num_kept]."""
    from retrieval.vectors import faiss_runtime

    scores_QC = faiss_runtime.products(queries_QD, rows_ND, positions_QC)
    best_QK = np.argpartition(-scores_QC, num_kept - 1, axis=1)[:, :num_kept]
    return np.take_along_axis(positions_QC, best_QK, axis=1)


def _copied(queries_QD: np.ndarray, rows_ND: np.ndarray, k: int, keep: np.ndarray) -> np.ndarray:
    """Return int64[Q, k]: the best kept rows, copying them out a block at a time."""
    from retrieval.vectors import faiss_runtime

    kept = np.flatnonzero(keep)
    scores, found = [], []
    for start in range(0, len(kept), max(_BLOCK_ROWS, 4 * k)):
        positions_B = kept[start : start + max(_BLOCK_ROWS, 4 * k)]
        block_scores, places = faiss_runtime.knn(queries_QD, rows_ND[positions_B], min(k, len(positions_B)))
        scores.append(block_scores)
        found.append(positions_B[places])
    if len(found) == 1:
        return found[0]
    scores_QC, positions_QC = np.concatenate(scores, axis=1), np.concatenate(found, axis=1)
    best_QK = np.argpartition(-scores_QC, k - 1, axis=1)[:, :k]
    return np.take_along_axis(positions_QC, best_QK, axis=1)


def _overfetched(
    queries_QD: np.ndarray, rows_ND: np.ndarray, k: int, keep: np.ndarray, num_kept: int
) -> np.ndarray:
    """Return int64[Q, k]: the best kept rows, found among the best of all where those suffice."""
    from retrieval.vectors import faiss_runtime

    fetched = min(len(rows_ND), int(4 * k * len(rows_ND) / num_kept))
    if fetched > _MAX_OVERFETCH:
        return _copied(queries_QD, rows_ND, k, keep)
    _, found_QC = faiss_runtime.knn(queries_QD, rows_ND, fetched)
    positions_QK, num_found_Q = _first_kept(found_QC, keep, k)
    short = np.flatnonzero(num_found_Q < k)
    if len(short):
        positions_QK[short] = _copied(np.ascontiguousarray(queries_QD[short]), rows_ND, k, keep)
    return positions_QK


def _first_kept(found_QC: np.ndarray, keep: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's k best kept rows among those found, and how many there were to choose from."""
    kept_QC = keep[found_QC]
    # Stable, so that the kept stay in the order of their scores.
    order_QK = np.argsort(~kept_QC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found_QC, order_QK, axis=1), kept_QC.sum(axis=1)


class ExactBase:
    """The matrix itself: recall 1, nothing to build, open at once."""

    kind: Literal["exact"] = "exact"
    measured_recall: float | None = None

    def __init__(self, matrix_ND: np.ndarray, num_threads: int = 0) -> None:
        """Search `matrix_ND` where it is; nothing is copied."""
        self.effort = SearchEffort()
        self.matrix_ND = matrix_ND
        self._num_threads = num_threads

    @property
    def resident_bytes(self) -> int:
        """Return 0: the matrix is the caller's."""
        return 0

    @property
    def max_probes(self) -> int:
        """Return 1: a scan has no effort."""
        return 1

    def search_us(self, effort: SearchEffort) -> float:
        """Return the time of a scan of all rows."""
        return scan_us(self.matrix_ND.shape[1], len(self.matrix_ND), 1, is_all=True)

    def search(
        self, queries_QD: np.ndarray, k: int, keep: np.ndarray | None, effort: SearchEffort | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's nearest rows; effort has no meaning here."""
        return search(queries_QD, self.matrix_ND, k, keep, self._num_threads)

    def save(self, folder: Path) -> list[Path]:
        """Write the note that says which kind this is."""
        return [Note(self.kind, self.effort).write(folder)]
