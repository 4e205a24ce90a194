"""FAISS as this process uses it: its BLAS threshold and its threads, set before every call.

Two settings are not what they look like. `distance_compute_blas_threshold` went from 20 to 128,000 in FAISS
1.15 and is compared with queries x dimensions, so exact search of 32 queries of 384 numbers would never reach
BLAS (3.3 times fewer queries a second on one core here, ten times in the research that found it). And
`omp_set_num_threads` holds for the calling thread only, so a pool's other threads would take every core.

Source: faiss/utils/distances.cpp (`knn_inner_product_select`), OpenMP 5.0 section 2.5 (nthreads-var).
"""

from __future__ import annotations

import os
from typing import Any

import faiss
import numpy as np

api: Any = faiss
"""FAISS as its Python layer takes arguments; its type stubs describe the C++ signatures."""

BLAS_THRESHOLD = 2000
"""Queries x dimensions from which exact search is a matrix product."""


def prepare(num_threads: int) -> None:
    """Make FAISS calls of the current thread use BLAS in batches, and so many threads.

    Args:
        num_threads: Threads; 0 for all cores of this process, or fewer where `OMP_NUM_THREADS` says so.
    """
    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
    faiss.omp_set_num_threads(num_threads or _threads_of_process())


def _threads_of_process() -> int:
    cores, told = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, max(1, int(told))) if told.isdigit() else cores


def knn(queries_QD: np.ndarray, rows_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best inner products, float32[Q, k] and int64[Q, k]; k is at most N. Call `prepare`."""
    scores_QK, positions_QK = faiss.knn(queries_QD, rows_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores_QK, positions_QK


def products(queries_QD: np.ndarray, rows_ND: np.ndarray, positions_QC: np.ndarray) -> np.ndarray:
    """Return float32[Q, C]: inner products with the rows at int64 positions, -inf where one is negative.

    The rows are read where they are. Copying them out first took 3.3 times as long (670 rows of 384 numbers
    for each of 32 queries: 8.0 against 2.4 ms of one core), with the interpreter held. Call `prepare` before.
    """
    scores_QC = np.empty(positions_QC.shape, dtype=np.float32)
    queries_QD, rows_ND = np.ascontiguousarray(queries_QD), np.ascontiguousarray(rows_ND)
    positions_QC = np.ascontiguousarray(positions_QC, dtype=np.int64)
    api.fvec_inner_products_by_idx(
        api.swig_ptr(scores_QC),
        api.swig_ptr(queries_QD),
        api.swig_ptr(rows_ND),
        api.swig_ptr(positions_QC),
        queries_QD.shape[1],
        *positions_QC.shape,
    )
    return scores_QC


def num_gpus() -> int:
    """Return the GPUs this build of FAISS can use; 0 for the CPU wheel."""
    return int(faiss.get_num_gpus())
