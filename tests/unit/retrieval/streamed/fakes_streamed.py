"""Data and oracles of the tests of streamed lists."""

from __future__ import annotations

import numpy as np

from retrieval.streamed import HostLists


def whole_vectors(num_rows: int, dim: int, seed: int) -> np.ndarray:
    """Vectors of small whole numbers: sums of their products are exact in any order, and ties abound."""
    return np.random.default_rng(seed).integers(-3, 4, (num_rows, dim)).astype(np.float32)


def clustered(
    num_rows: int, dim: int, seed: int, *, num_clusters: int = 40, spread: float = 0.6
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((num_clusters, dim))
    noise = generator.standard_normal((num_rows, dim)) * spread
    vectors = centres[generator.integers(0, num_clusters, num_rows)] + noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def list_of_rows(lists: HostLists) -> np.ndarray:
    """The list of every position."""
    found = np.empty(lists.num_rows, dtype=np.int64)
    found[lists.ids_N] = np.repeat(np.arange(lists.num_lists), np.diff(lists.offsets_C1))
    return found


def exact_over_probed(
    matrix_ND: np.ndarray,
    lists: HostLists,
    queries_QD: np.ndarray,
    probes_QN: np.ndarray,
    k: int,
    keep_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's lists, one query at a time; of equals the first in list order."""
    list_N = list_of_rows(lists)
    place_N = np.empty(lists.num_rows, dtype=np.int64)
    place_N[lists.ids_N] = np.arange(lists.num_rows)
    scores_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
    positions_QK = np.full((len(queries_QD), k), -1, dtype=np.int64)
    for row, (query, probes) in enumerate(zip(queries_QD, probes_QN, strict=True)):
        chosen = np.isin(list_N, probes) & (True if keep_N is None else keep_N)
        positions = np.flatnonzero(chosen)
        scores = matrix_ND[positions] @ query
        best = np.lexsort((place_N[positions], -scores))[:k]
        scores_QK[row, : len(best)] = scores[best]
        positions_QK[row, : len(best)] = positions[best]
    return scores_QK, positions_QK
