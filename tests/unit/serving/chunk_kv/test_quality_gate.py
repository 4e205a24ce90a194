"""The gate: what it measures, and when it closes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from serving.chunk_kv.quality_gate import (
    CheckedAnswer,
    Comparison,
    GateConfig,
    QualityGate,
    agreement,
    citation_overlap,
    compare,
    kl_divergence,
)


def log(*probabilities: float) -> dict[int, float]:
    return {token: math.log(probability) for token, probability in enumerate(probabilities)}


def test_divergence_is_that_of_the_whole_distributions_where_all_tokens_are_known():
    exact, blended = (0.7, 0.2, 0.1), (0.5, 0.25, 0.25)
    wanted = sum(p * math.log(p / q) for p, q in zip(exact, blended, strict=True))
    assert kl_divergence(log(*exact), log(*blended)) == pytest.approx(wanted)


def test_divergence_of_the_likeliest_tokens_is_never_more_than_of_all():
    random_state = np.random.default_rng(0)
    for _ in range(50):
        exact, blended = random_state.dirichlet(np.ones(30), 2)
        whole = float((exact * np.log(exact / blended)).sum())
        top = [{int(t): math.log(p[t]) for t in np.argsort(-p)[:8]} for p in (exact, blended)]
        assert 0.0 <= kl_divergence(*top) <= whole + 1e-9


def test_equal_distributions_do_not_diverge():
    assert kl_divergence(log(0.6, 0.3), log(0.6, 0.3)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("exact", "blended", "share"), [((1, 2, 3, 4), (1, 2, 9, 4), 0.5), ((1,), (1, 2), 1.0), ((), (5,), 1.0)]
)
def test_agreement_ends_at_the_first_token_that_differs(exact, blended, share: float):
    assert agreement(exact, blended) == share
    one, other = CheckedAnswer(exact, log(0.9)), CheckedAnswer(blended, log(0.9))
    assert compare(one, other) == Comparison(pytest.approx(0.0), share)


def test_the_gate_closes_on_a_full_window_that_falls_short_and_says_why():
    gate = QualityGate(GateConfig(window=3))
    for _ in range(2):
        gate.record(Comparison(kl=5.0, agreement=0.0))
    assert gate.closed_reason is None, "two checks are not a window"
    gate.record(Comparison(kl=5.0, agreement=0.0))
    assert gate.closed_reason is not None
    assert "5.000 nats (limit 0.1)" in gate.closed_reason
    assert "0% of greedy tokens agreed (limit 80%)" in gate.closed_reason
    assert not gate.wants_check()
    for _ in range(5):
        gate.record(Comparison(kl=0.0, agreement=1.0))
    assert gate.closed_reason is not None, "a closed gate stays closed"


@pytest.mark.parametrize(
    ("exact", "blended", "share"),
    [
        ("Blocks [1]. Trees [2].", "Trees [2], and blocks [1] [1].", 1.0),
        ("Blocks [1]. Trees [2].", "Trees [2].", 0.5),
        ("Blocks [1].", "Nothing.", 0.0),
        ("Nothing.", "Nothing [at all].", 1.0),
    ],
)
def test_citations_are_compared_as_sets(exact: str, blended: str, share: float):
    assert citation_overlap(exact, blended) == share
    answers = [CheckedAnswer([1], log(0.9), text) for text in (exact, blended)]
    assert compare(*answers).citation_overlap == share


def test_only_the_first_32_tokens_are_compared_one_by_one():
    one, other = (CheckedAnswer([*range(32), last], log(0.9)) for last in (100, 101))
    assert compare(one, other).agreement == 1.0


@pytest.mark.parametrize(
    "comparison", [Comparison(0.2, 1.0), Comparison(0.0, 0.7), Comparison(0.0, 1.0, 0.7)]
)
def test_each_measure_closes_the_gate(comparison: Comparison):
    gate = QualityGate(GateConfig(window=2))
    gate.record(comparison)
    gate.record(comparison)
    assert gate.closed_reason is not None


def test_good_answers_keep_it_open_and_are_checked_more_seldom_after_a_window():
    gate = QualityGate(GateConfig(window=10, check_share=0.1), random.Random(0))
    checked = []
    for _ in range(1_000):
        checked.append(gate.wants_check())
        if checked[-1]:
            gate.record(Comparison(kl=0.01, agreement=0.95))
    assert all(checked[:10])
    assert 60 < sum(checked[10:]) < 140
    assert gate.closed_reason is None
    assert (gate.mean_kl, gate.mean_agreement) == (pytest.approx(0.01), pytest.approx(0.95))


def test_a_share_of_zero_checks_nothing():
    assert not QualityGate(GateConfig(check_share=0.0)).wants_check()


@pytest.mark.parametrize(
    "fields",
    [
        {"check_share": 1.5},
        {"window": 0},
        {"max_kl": 0.0},
        {"min_agreement": -0.1},
        {"min_citation_overlap": 1.1},
    ],
)
def test_settings_out_of_bounds_are_refused(fields: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GateConfig(**fields)  # type: ignore[arg-type]
