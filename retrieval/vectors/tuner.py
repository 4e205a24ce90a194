"""Picks the search effort of an approximate base: the cheapest on a grid that reaches the recall floor.

Rows of the matrix serve as held-out queries (each one's own row is left out of its answer), unless real
queries are given. The grid is walked along its border: from the largest rerank and one probe upwards to the
first that reaches the floor, then on with the next smaller rerank, which never needs fewer probes. What is
not beaten in both recall and time is the Pareto front.

FAISS's own `AutoTune` knows neither the exact rerank outside it nor CAGRA.

Legend: Q queries, D dimensions, K hits.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from retrieval.vectors import exact
from retrieval.vectors.types import SearchEffort, VectorBase

K = 10
_NUM_QUERIES = 256
_ERRORS = 2
_RERANKS = (40, 16, 8, 4, 2)


@dataclass(frozen=True, slots=True)
class Point:
    """An effort that was tried."""

    effort: SearchEffort
    """What was spent."""
    recall: float
    """Share of the true ten nearest that were found."""
    error: float
    """Standard error of that share over the queries."""
    query_us: float
    """CPU time a query of a batch took the calling thread: what else the machine does hardly shows in it."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What the tuner chose, and what else it saw."""

    effort: SearchEffort
    """The cheapest that clears the floor by two standard errors; where none does, that of best recall."""
    recall: float
    """Its recall."""
    reaches_floor: bool
    """Whether any cleared it so."""
    front: tuple[Point, ...]
    """What no other point beats in both recall and time, cheapest first."""


def tune(
    base: VectorBase,
    floor: float,
    num_threads: int = 0,
    seed: int = 0,
    queries_QD: np.ndarray | None = None,
) -> Tuned:
    """Return the cheapest effort that reaches `floor` recall@10.

    Args:
        base: What to tune; at least eleven rows.
        floor: Recall@10 to reach, 0 to 1.
        num_threads: Threads of the exact search that makes the truth.
        seed: Of the rows held out.
        queries_QD: float32[Q, D] of real queries; None to hold rows out.
    """
    own_Q = None
    if queries_QD is None:
        num_rows = len(base.matrix_ND)
        rows = np.random.default_rng(seed).choice(num_rows, min(_NUM_QUERIES, num_rows), replace=False)
        own_Q = np.sort(rows)
        queries_QD = np.ascontiguousarray(base.matrix_ND[own_Q])
    fetched = min(K + 1, len(base.matrix_ND))
    truth_QK = without(exact.search(queries_QD, base.matrix_ND, fetched, None, num_threads)[1], own_Q)
    points: dict[SearchEffort, Point] = {}

    def tried(probes: int, rerank: int) -> Point:
        effort = SearchEffort(probes, rerank)
        if effort not in points:
            began_s = time.thread_time()
            _, found_QK = base.search(queries_QD, fetched, None, effort)
            query_us = (time.thread_time() - began_s) / len(queries_QD) * 1e6
            recalls_Q = recalls_of(without(found_QK, own_Q), truth_QK)
            error = float(recalls_Q.std()) / math.sqrt(len(recalls_Q))
            points[effort] = Point(effort, float(recalls_Q.mean()), error, query_us)
        return points[effort]

    def reaches(point: Point) -> bool:
        # A grid has many chances to look good on one sample: clearing the floor by one standard error gave
        # 0.955 here and 0.949 on other queries.
        return point.recall >= min(floor + _ERRORS * point.error, 1.0)

    steps, first = _probe_steps(base.max_probes), 0
    for rerank in _RERANKS:
        enough = (step for step in range(first, len(steps)) if reaches(tried(steps[step], rerank)))
        found = next(enough, None)
        if found is None:
            break
        first = found
    reaching = [point for point in points.values() if reaches(point)]
    if reaching:
        best = min(reaching, key=lambda point: point.query_us)
    else:
        best = max(points.values(), key=lambda point: (point.recall, -point.query_us))
    return Tuned(best.effort, best.recall, bool(reaching), pareto_front(list(points.values())))


def pareto_front(points: list[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats in both recall and time, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.query_us, -point.recall)):
        if not front or point.recall > front[-1].recall:
            front.append(point)
    return tuple(front)


def recalls_of(found_QK: np.ndarray, truth_QK: np.ndarray) -> np.ndarray:
    """Return float64[Q]: each query's share of true rows that were found; 1 where there are none."""
    true_QK = truth_QK >= 0
    hit_QK = (truth_QK[:, :, None] == found_QK[:, None, :]).any(axis=2) & true_QK
    num_true_Q = true_QK.sum(axis=1)
    return np.where(num_true_Q > 0, hit_QK.sum(axis=1) / np.maximum(num_true_Q, 1), 1.0)


def without(positions_QK: np.ndarray, own_Q: np.ndarray | None) -> np.ndarray:
    """Return the first `K` positions of each query that are not the row it was made from."""
    if own_Q is None:
        return positions_QK[:, :K]
    is_own_QK = positions_QK == own_Q[:, None]
    order_QK = np.argsort(is_own_QK, axis=1, kind="stable")
    kept_QK = np.where(is_own_QK, -1, positions_QK)
    return np.take_along_axis(kept_QK, order_QK, axis=1)[:, :K]


def _probe_steps(max_probes: int) -> list[int]:
    """Return the grid of probes: powers of two and their middles, up to `max_probes`."""
    steps = {1, max_probes}
    power = 2
    while power < max_probes:
        steps |= {power, min(power * 3 // 2, max_probes)}
        power *= 2
    return sorted(steps)
