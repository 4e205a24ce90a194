"""Reciprocal-rank fusion follows its stated equation; a leg that knows gets more weight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.ranking.fusion import adapted_alpha, reciprocal_ranks

LEG = st.lists(st.integers(0, 20), unique=True, max_size=12)


@given(dense=LEG, lexical=LEG, constant=st.floats(0, 100))
def test_reciprocal_ranks_follow_the_equation(dense, lexical, constant) -> None:
    fused = reciprocal_ranks(
        {key: 1.0 - rank / 50 for rank, key in enumerate(dense)},
        {key: 9.0 - rank / 50 for rank, key in enumerate(lexical)},
        constant,
    )
    assert set(fused) == {*dense, *lexical}
    num_legs = bool(dense) + bool(lexical)
    for key, score in fused.items():
        ranks = [leg.index(key) + 1 for leg in (dense, lexical) if key in leg]
        assert score == pytest.approx(sum((constant + 1) / (constant + rank) for rank in ranks) / num_legs)
        assert 0 < score <= 1 + 1e-9


def test_first_in_every_leg_has_one() -> None:
    assert reciprocal_ranks({"a": 0.9, "b": 0.1}, {"a": 7.0}, 10)["a"] == pytest.approx(1.0)
    assert reciprocal_ranks({"a": 0.9}, {}, 10) == {"a": 1.0}


def test_the_leg_whose_best_stands_out_gets_more_weight() -> None:
    sure = {"a": 0.9, "b": 0.2, "c": 0.1}
    unsure = {"a": 0.9, "b": 0.89, "c": 0.1}
    assert adapted_alpha(sure, unsure, 0.5) > 0.5 > adapted_alpha(unsure, sure, 0.5)
    # dense: 1 - mean(0.125, 0) = 0.9375; lexical: 1 - mean(0.89, 0.1) / 0.9 = 0.45
    assert adapted_alpha(sure, unsure, 0.4) == pytest.approx(0.4 * 0.9375 / (0.4 * 0.9375 + 0.6 * 0.45))


def test_where_nothing_can_be_told_the_given_weight_stays() -> None:
    alike = {"a": 0.5, "b": 0.5}
    assert adapted_alpha({}, alike, 0.3) == adapted_alpha(alike, {}, 0.3) == 0.3
    assert adapted_alpha(alike, alike, 0.3) == 0.3
    assert adapted_alpha({"a": 0.5}, {"a": 7.0}, 0.3) == pytest.approx(0.3)
    assert adapted_alpha(alike, {"a": 7.0, "b": 1.0}, 0.3) == 0.0


@given(
    dense=st.dictionaries(st.integers(0, 20), st.floats(-1, 1), max_size=12),
    lexical=st.dictionaries(st.integers(0, 20), st.floats(0.001, 50), max_size=12),
    alpha=st.floats(0, 1),
)
def test_an_adapted_weight_is_a_weight(dense, lexical, alpha) -> None:
    best_first = [dict(sorted(leg.items(), key=lambda item: -item[1])) for leg in (dense, lexical)]
    assert -1e-9 <= adapted_alpha(*best_first, alpha) <= 1 + 1e-9
