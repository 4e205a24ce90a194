"""The recall searches are served with, estimated while they are served.

A share of approximate searches is repeated exactly in the shadow. Each query gives a share of true hits
between 0 and 1, whose variance is at most that of a coin of the same mean, so Wilson's interval over queries
holds; hits are no independent trials, for a query's hits are missed together.

Source: Wilson, JASA 1927; Agresti and Coull, The American Statistician 1998.

Legend: Q queries, D dimensions, K hits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from threading import Lock

import numpy as np

from retrieval.vectors.segments import VectorSegments
from retrieval.vectors.tuner import K, recalls_of, without
from retrieval.vectors.types import Selected

_Z_95 = 1.959964
_MIN_QUERIES = 30


@dataclass(frozen=True, slots=True)
class RecallEstimate:
    """Recall@10 with its interval."""

    recall: float
    """Mean over the queries looked at; 1 before there were any."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of it."""
    num_queries: int
    """Queries it rests on."""
    alarm: bool
    """Whether recall is below the floor beyond doubt: the whole interval lies under it."""


class RecallEstimator:
    """Collects the recall of shadowed searches. Thread-safe."""

    def __init__(self, floor: float, share: float, window: int = 1000, seed: int = 0) -> None:
        """Look at `share` of the searches and keep the last `window` of those.

        Args:
            floor: Recall below which the alarm rings.
            share: Part of searches repeated exactly, 0 to 1.
            window: Most recent shadowed queries the estimate rests on.
            seed: Of the choice.
        """
        self._floor = floor
        self._share = share
        self._recalls: deque[float] = deque(maxlen=window)
        self._rng = np.random.default_rng(seed)
        self._lock = Lock()

    def wants(self) -> bool:
        """Return whether the next search should be shadowed: chosen at random, so that no pattern hides."""
        with self._lock:
            return bool(self._rng.random() < self._share)

    def record(self, found_QK: np.ndarray, truth_QK: np.ndarray) -> None:
        """Add searches whose exact answer is known: int64[Q, K] each, -1 for none."""
        recalls_Q = recalls_of(found_QK[:, :K], truth_QK[:, :K])
        with self._lock:
            self._recalls.extend(recalls_Q.tolist())

    def shadow(
        self,
        segments: VectorSegments,
        queries_QD: np.ndarray,
        found_QK: np.ndarray,
        selection: Selected | None = None,
    ) -> None:
        """Repeat searches exactly and record how much of the truth they had found."""
        _, truth_QK, _ = segments.search(queries_QD, K, selection, exact=True)
        self.record(found_QK, truth_QK)

    def estimate(self) -> RecallEstimate:
        """Return what is known now."""
        with self._lock:
            recalls = list(self._recalls)
        return _estimate(recalls, self._floor)

    def reset(self) -> None:
        """Forget what was seen: a new base answers."""
        with self._lock:
            self._recalls.clear()


class AskedQueries:
    """The last queries of a version, to estimate and to tune with. Not thread-safe."""

    def __init__(self, limit: int = 1000) -> None:
        """Keep the last `limit`."""
        self._queries: deque[np.ndarray] = deque(maxlen=limit)

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, queries_QD: np.ndarray) -> None:
        """Note queries, float32[Q, D]; they are copied."""
        self._queries.extend(queries_QD.copy())

    def last(self, num_queries: int) -> np.ndarray | None:
        """Return the newest `num_queries`, float32[Q, D]; None where there are fewer."""
        if not 0 < num_queries <= len(self._queries):
            return None
        return np.stack(list(self._queries)[-num_queries:])


def estimate_recall(
    segments: VectorSegments,
    num_queries: int,
    floor: float,
    seed: int = 0,
    selection: Selected | None = None,
    queries_QD: np.ndarray | None = None,
) -> RecallEstimate:
    """Return the recall@10 of searches as they are planned now, from queries or from live rows held out.

    Args:
        segments: What is searched.
        num_queries: Rows to hold out; fewer where there are fewer.
        floor: Recall below which the alarm rings.
        seed: Of the choice of rows.
        selection: Which rows may be found; None for every live one.
        queries_QD: float32[Q, D] of queries to use in place of rows.
    """
    if queries_QD is not None:
        _, found_QK, _ = segments.search(queries_QD, K, selection)
        _, truth_QK, _ = segments.search(queries_QD, K, selection, exact=True)
        return _estimate(recalls_of(found_QK, truth_QK).tolist(), floor)
    rng = np.random.default_rng(seed)
    live = segments.live_positions()
    own_Q = np.sort(rng.choice(live, min(num_queries, len(live)), replace=False))
    queries_QD = segments.exact_vectors(own_Q)
    _, found_QK, _ = segments.search(queries_QD, K + 1, selection)
    _, truth_QK, _ = segments.search(queries_QD, K + 1, selection, exact=True)
    return _estimate(recalls_of(without(found_QK, own_Q), without(truth_QK, own_Q)).tolist(), floor)


def wilson_interval(mean: float, num_trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion; (0, 1) without trials."""
    if not num_trials:
        return 0.0, 1.0
    z2 = _Z_95**2 / num_trials
    centre = (mean + z2 / 2) / (1 + z2)
    half = _Z_95 / (1 + z2) * math.sqrt(mean * (1 - mean) / num_trials + z2 / (4 * num_trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _estimate(recalls: list[float], floor: float) -> RecallEstimate:
    mean = sum(recalls) / len(recalls) if recalls else 1.0
    low, high = wilson_interval(mean, len(recalls))
    return RecallEstimate(mean, low, high, len(recalls), len(recalls) >= _MIN_QUERIES and high < floor)
