"""Maximal marginal relevance against the greedy definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_codes import unit_rows

from retrieval.ranking.mmr import mmr_order


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 12), balance=st.floats(0, 1), seed=st.integers(0, 50), k=st.integers(1, 15))
def test_each_choice_has_the_largest_marginal_relevance(num, balance, seed, k) -> None:
    vectors_ND = unit_rows(num, 6, seed)
    relevance = sorted(np.random.default_rng(seed).random(num).tolist(), reverse=True)
    chosen = mmr_order(relevance, vectors_ND, balance, k)
    assert len(chosen) == len(set(chosen)) == min(k, num)
    spread = relevance[0] - relevance[-1]
    scaled = [(score - relevance[-1]) / spread if spread else 1.0 for score in relevance]
    cosines_NN = vectors_ND @ vectors_ND.T

    def gain(one: int, before: list[int]) -> float:
        nearest = max((float(cosines_NN[one, other]) for other in before), default=0.0)
        return balance * scaled[one] - (1 - balance) * nearest

    for place, one in enumerate(chosen):
        before = chosen[:place]
        best = max(gain(other, before) for other in range(num) if other not in before)
        assert gain(one, before) >= best - 1e-5


def test_relevance_alone_keeps_the_order_and_diversity_drops_a_double() -> None:
    vectors_ND = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert mmr_order([1.0, 0.9, 0.5], vectors_ND, 1.0, 3) == [0, 1, 2]
    assert mmr_order([1.0, 0.9, 0.5], vectors_ND, 0.5, 3) == [0, 2, 1]
    assert mmr_order([], np.zeros((0, 2), np.float32), 0.5, 3) == []
