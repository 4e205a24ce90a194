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
