"""MaxSim against its equation, written out passage by passage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_codes import unit_rows

from retrieval.errors import IndexUnavailable
from retrieval.ranking.maxsim import maxsim, token_weights
from retrieval.ranking.token_codes import decode, encode

DIM = 32


def oracle(query_TD: np.ndarray, tokens_MD: np.ndarray) -> float:
    if not len(tokens_MD):
        return 0.0
    sims_TM = query_TD @ tokens_MD.T
    common_T = np.array([np.mean([token @ other for other in query_TD]) for token in query_TD])
    weights_T = 1 / np.maximum(common_T, 1 / len(query_TD))
    weights_T /= weights_T.sum()
    anywhere = weights_T @ sims_TM.max(axis=1)
    close = max(weights_T @ sims_TM[:, at : at + 32].max(axis=1) for at in range(0, len(tokens_MD), 16))
    return float((anywhere + close) / 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.just(0), st.integers(1, 90)), max_size=8),
    num_query=st.integers(1, 9),
    codec=st.sampled_from(["sign", "int4", "int8"]),
)
def test_scores_follow_the_equation(lengths, num_query, codec) -> None:
    query_TD = unit_rows(num_query, DIM, 99)
    codes = [encode(unit_rows(length, DIM, seed), codec) for seed, length in enumerate(lengths)]
    expected = [oracle(query_TD, decode(code, codec, DIM)) for code in codes]
    scores_P = maxsim(query_TD, codes, codec)
    assert scores_P.dtype == np.float32
    assert scores_P.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_score_does_not_depend_on_the_company() -> None:
    query_TD = unit_rows(4, DIM)
    codes = [encode(unit_rows(length, DIM, length), "int8") for length in (40, 7, 16, 33)]
    together = maxsim(query_TD, codes, "int8")
    alone = [float(maxsim(query_TD, [code], "int8")[0]) for code in codes]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)


def test_tokens_found_close_together_count_more() -> None:
    tokens_TD = np.eye(DIM, dtype=np.float32)
    filler_TD = np.repeat(tokens_TD[:1], 80, axis=0)
    close_TD, apart_TD = filler_TD.copy(), filler_TD.copy()
    close_TD[[40, 41]] = tokens_TD[[5, 6]]
    apart_TD[[0, 79]] = tokens_TD[[5, 6]]
    close, apart = maxsim(tokens_TD[[5, 6]], [encode(close_TD, "int8"), encode(apart_TD, "int8")], "int8")
    assert close > apart


def test_a_token_that_says_what_the_others_say_counts_less() -> None:
    axes_TD = np.eye(DIM, dtype=np.float32)
    echo_D = 0.9 * axes_TD[1] + np.sqrt(np.float32(0.19)) * axes_TD[2]
    query_TD = np.stack([axes_TD[0], axes_TD[1], echo_D])
    weights_T = token_weights(query_TD)
    assert weights_T[0] > weights_T[1] == pytest.approx(weights_T[2])
    # Two tokens that mean the same are met at 0.9; the one that stands alone is met at 1, and decides.
    near_D = 0.9 * axes_TD[1] + np.sqrt(np.float32(0.19)) * axes_TD[3]
    told_apart, about_it = maxsim(
        query_TD, [encode(axes_TD[:1], "int8"), encode(near_D[None], "int8")], "int8"
    )
    assert told_apart > about_it


def test_tokens_with_nothing_in_common_weigh_the_same_and_an_opposed_one_no_more() -> None:
    axes_TD = np.eye(DIM, dtype=np.float32)[:4]
    assert token_weights(axes_TD).tolist() == pytest.approx([0.25] * 4)
    assert token_weights(axes_TD[:1]).tolist() == [1.0]
    opposed_TD = np.concatenate([axes_TD, -axes_TD[:1]])
    weights_T = token_weights(opposed_TD)
    assert weights_T.sum() == pytest.approx(1.0)
    assert weights_T.tolist() == pytest.approx([0.2] * 5)


def test_nothing_to_compare_scores_zero() -> None:
    assert maxsim(np.zeros((0, DIM), np.float32), [encode(unit_rows(3, DIM), "sign")], "sign").tolist() == [
        0.0
    ]
    assert maxsim(unit_rows(2, DIM), [], "sign").tolist() == []


def test_codes_of_another_model_are_refused() -> None:
    with pytest.raises(IndexUnavailable):
        maxsim(unit_rows(2, DIM), [encode(unit_rows(3, DIM * 2), "sign")], "sign")
