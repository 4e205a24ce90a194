"""Maximal marginal relevance: hits that are relevant and unlike those already chosen.

Source: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents", SIGIR
1998: the next hit is the one with the largest
balance * relevance - (1 - balance) * (largest cosine with a hit already chosen).

Shapes: N candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mmr_order(relevance: Sequence[float], vectors_ND: np.ndarray, balance: float, k: int) -> list[int]:
    """Return the positions of the best `k` candidates in the order they are chosen.

    Args:
        relevance: Score of each candidate, best first; scaled to [0, 1] here, as cosines weigh against it.
        vectors_ND: float32[num_candidates, dim], unit length.
        balance: 1 is relevance alone, 0 diversity alone.
        k: How many to choose.
    """
    scores_N = np.asarray(relevance, np.float32)
    if not len(scores_N):
        return []
    spread = float(scores_N.max() - scores_N.min())
    scores_N = (scores_N - scores_N.min()) / spread if spread > 0 else np.ones_like(scores_N)
    nearest_N = np.zeros(len(scores_N), np.float32)
    open_N = np.ones(len(scores_N), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores_N)):
        gains_N = balance * scores_N - (1 - balance) * nearest_N
        # argmax takes the first of equals, so equal gains keep the order they came in.
        best = int(np.where(open_N, gains_N, -np.inf).argmax())
        chosen.append(best)
        open_N[best] = False
        cosines_N = vectors_ND @ vectors_ND[best]
        nearest_N = cosines_N if len(chosen) == 1 else np.maximum(nearest_N, cosines_N)
    return chosen
