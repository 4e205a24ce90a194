"""What both tiers ask of a search's arguments."""

from __future__ import annotations

import numpy as np

from retrieval.errors import InvalidVector


def checked_queries(
    queries_QD: np.ndarray, dim: int, k: int, keep_N: np.ndarray | None, num_rows: int
) -> np.ndarray:
    """Return the queries as a contiguous, writable float32[Q, dim].

    Raises:
        InvalidVector: Queries of another dimension, NaN or infinity.
        ValueError: `k` below 1, or `keep_N` of another length.
    """
    queries_QD = np.array(queries_QD, dtype=np.float32, order="C")
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
        raise InvalidVector(f"queries have shape {queries_QD.shape}; wanted [any, {dim}]")
    if not np.isfinite(queries_QD).all():
        raise InvalidVector("a query holds NaN or infinity; every number must be finite")
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    if keep_N is not None and keep_N.shape != (num_rows,):
        raise ValueError(f"keep_N must be bool[{num_rows}]; got shape {keep_N.shape}")
    return queries_QD


def probes_of(nprobe: int | np.ndarray | None, default: int, num_lists: int, num_queries: int) -> np.ndarray:
    """Return int64[Q], how many lists each query looks into: 1 to all there are."""
    wanted = np.asarray(default if nprobe is None else nprobe, dtype=np.int64)
    return np.broadcast_to(wanted.clip(1, num_lists), (num_queries,))


def first_probes(probes_QN: np.ndarray, probes_Q: np.ndarray) -> np.ndarray:
    """Return int64[Q, N] lists, nearest first, of which each query keeps its own number; -1 for the rest."""
    return np.where(np.arange(probes_QN.shape[1]) < probes_Q[:, None], probes_QN, -1)
