"""Reciprocal-rank fusion follows its stated equation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.ranking.fusion import reciprocal_ranks

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
