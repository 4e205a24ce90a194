"""Ranking measures as trec_eval defines them: nDCG with linear gains, recall; means over queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg(ranked: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Return nDCG@k of one ranking: gain / log2(rank + 1), over that of the best ranking there is."""
    found = sum(gains.get(name, 0.0) / math.log2(rank + 2) for rank, name in enumerate(ranked[:k]))
    best = sum(
        gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(gains.values(), reverse=True)[:k])
    )
    return found / best if best else 0.0


def recall(ranked: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Return the share of the relevant names among the first k."""
    relevant = {name for name, gain in gains.items() if gain > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return sum(values) / len(values)
