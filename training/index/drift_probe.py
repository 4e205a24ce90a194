"""How far the vectors of a version have drifted from the weights now training.

Shapes: P probe passages, Q probe queries, C candidates, D dimensions, K ranks compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from training.index.encoding import ProbeEncoder
from training.index.refresh_report import ProbeReport
from training.index.schedule import RefreshConfig
from training.index.version_rows import VersionRows

SearchStale = Callable[[np.ndarray, int], np.ndarray]
"""Rows int64[Q, k] that a version gives for queries float32[Q, D] and a k."""


class DriftProbe:
    """The same passages and queries in every probe of a run, so that its values can be compared."""

    def __init__(self, config: RefreshConfig, texts: Sequence[str], queries: Sequence[str]) -> None:
        """Choose what is probed: passages spread evenly over the corpus, and the first queries.

        Args:
            config: Sizes.
            texts: The corpus.
            queries: Queries that no training step uses; may be empty, the overlap is then 1.
        """
        self._config = config
        self._texts = texts
        num_passages = min(config.num_probe_passages, len(texts))
        self._rows_P = np.arange(num_passages, dtype=np.int64) * len(texts) // num_passages
        self._queries = list(queries[: config.num_probe_queries])

    def measure(self, rows: VersionRows, encoder: ProbeEncoder, search_stale: SearchStale) -> ProbeReport:
        """Return cosine and overlap of a version against fresh weights."""
        fresh_PD = self._encode(encoder, self._rows_P)
        return ProbeReport(
            cosine=mean_cosine(fresh_PD, rows.vectors(self._rows_P)),
            overlap=self._overlap(encoder, search_stale) if self._queries else 1.0,
        )

    def _overlap(self, encoder: ProbeEncoder, search_stale: SearchStale) -> float:
        queries_QD = np.asarray(encoder.encode_queries(self._queries), dtype=np.float32)
        stale_QC = search_stale(queries_QD, self._config.probe_depth)
        # Queries share candidates; each is encoded once.
        rows_N, at_QC = np.unique(stale_QC, return_inverse=True)
        fresh_ND = self._encode(encoder, rows_N)
        scores_QC = np.einsum("qd,qcd->qc", queries_QD, fresh_ND[at_QC.reshape(stale_QC.shape)])
        order_QC = np.lexsort((stale_QC, -scores_QC), axis=1)
        fresh_QC = np.take_along_axis(stale_QC, order_QC, axis=1)
        k = min(self._config.probe_k, stale_QC.shape[1])
        return shared_ranks(stale_QC[:, :k], fresh_QC[:, :k])

    def _encode(self, encoder: ProbeEncoder, rows_N: np.ndarray) -> np.ndarray:
        return np.asarray(encoder.encode([self._texts[int(row)] for row in rows_N]), dtype=np.float32)


def mean_cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Return the mean cosine of paired rows; a zero vector counts as cosine 0."""
    norms_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return float(np.mean((a_ND * b_ND).sum(axis=1) / np.maximum(norms_N, np.finfo(np.float32).tiny)))


def shared_ranks(a_QK: np.ndarray, b_QK: np.ndarray) -> float:
    """Return the mean share of rows that two lists of the same length have in common, in any order."""
    return float(np.mean([np.isin(a_K, b_K).mean() for a_K, b_K in zip(a_QK, b_QK, strict=True)]))
