"""The fused score is the stated equation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.ranking.fusion import convex_combination

SCORES = st.dictionaries(st.integers(0, 20), st.floats(0.001, 50, allow_nan=False), max_size=12)


@given(dense=SCORES, lexical=SCORES, alpha=st.floats(0, 1))
def test_fused_scores_follow_the_equation(dense: dict, lexical: dict, alpha: float) -> None:
    fused = convex_combination(dense, lexical, alpha)
    assert set(fused) == set(dense) | set(lexical)
    weight = alpha if dense and lexical else float(bool(dense))
    for key, score in fused.items():
        expected = 0.0
        if key in dense:
            low, high = min(dense.values()), max(dense.values())
            expected += weight * ((dense[key] - low) / (high - low) if high > low else 1.0)
        if key in lexical:
            expected += (1 - weight) * lexical[key] / max(lexical.values())
        assert score == pytest.approx(expected)
        assert -1e-9 <= score <= 1 + 1e-9
