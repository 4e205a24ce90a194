"""Answers are scored as SQuAD's published scorer does, and found in texts as whole words."""

from __future__ import annotations

import pytest

from training.data.answers import exact_match, f1, holds_answer, normalise

TEXTS = [
    "",
    "the",
    "The Normans",
    "normans",
    "a  Norman, an  army!",
    "U.S.-led",
    "1,990s",
    "cafe\u0301 \u2013 de la Paix",
    "of the people, by the people",
    "people by of",
    "athens",
    "An answer;\tthe  ANSWER",
]


def test_scores_equal_the_published_squad_scorer():
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1, normalize_answer

    for accepted in TEXTS:
        assert normalise(accepted) == normalize_answer(accepted)
        for predicted in TEXTS:
            # The scorer replaces answers that normalise to nothing by the empty one before comparing.
            gold = accepted if normalize_answer(accepted) else ""
            assert exact_match(predicted, [accepted]) == compute_exact(gold, predicted)
            assert f1(predicted, [accepted]) == pytest.approx(compute_f1(gold, predicted), abs=1e-12)


def test_best_of_several_answers_counts():
    assert exact_match("James Watt", ["Watt", "james watt."]) == 1.0
    assert f1("James Watt", ["Watt", "Newton"]) == pytest.approx(2 / 3)


def test_no_answer_is_right_where_there_is_none():
    assert exact_match("", []) == f1("", []) == 1.0
    assert exact_match("Watt", []) == f1("Watt", []) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("Born in Paris, France.", "paris", True),
        ("Comparisons are odious.", "paris", False),
        ("It rained in 2017.", "1", False),
        ("It cost $200-300.", "200", True),
        ("The U.S. economy", "US", True),
        ("a\u0300 la carte", "\u00e0 la carte", True),
        ("The whole of it", "the", False),
        ("He met the Queen of England", "Queen of England", True),
        ("Queen Anne of England", "Queen of England", False),
    ],
)
def test_an_answer_is_held_as_whole_words(text, answer, held):
    assert holds_answer(text, [answer]) is held


def test_any_of_several_answers_is_enough():
    assert holds_answer("Watt improved it.", ["Newcomen", "Watt"])
    assert not holds_answer("Watt improved it.", [])
