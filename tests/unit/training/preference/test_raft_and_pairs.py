"""RAFT-style examples, and preference pairs from judged outcomes and feedback."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage
from training.data.feedback import FeedbackPassage, FeedbackRow, Provenance
from training.errors import ConfigError, DataError
from training.preference.examples import CitedAnswer, SearchTrace, TraceTurn
from training.preference.pairs import Outcome, feedback_outcomes, preference_pairs
from training.preference.raft import RaftConfig, raft_examples
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

PASSAGES = (
    TrainingPassage("gold", "The mill was built in 1701.", "mill"),
    TrainingPassage("near", "Many mills stood there.", "mills"),
    TrainingPassage("copy", "It opened in 1701, they say.", "copy"),
    TrainingPassage("far", "Boats are made of wood.", "boats"),
)
QUESTION = TrainingQuestion("q", "When was the mill built?", ("1701",), ("gold",))
FOUND = {"q": ("near", "gold", "copy", "far")}


def data(*questions: TrainingQuestion) -> TrainingSet:
    return TrainingSet("test", PASSAGES, questions)


def test_the_answer_cites_the_oracle_among_retrieved_distractors():
    (example,) = raft_examples(data(QUESTION), FOUND, RaftConfig(num_passages=3, oracle_drop=0.0))
    shown = [one.chunk_id for one in example.passages]
    assert sorted(shown) == ["far", "gold", "near"]  # `copy` holds the answer too: it is no distractor
    assert example.answer == f"1701 [{shown.index('gold') + 1}]"


@pytest.mark.parametrize(("absent", "answer"), [("refuse", NOT_IN_DOCUMENTS), ("recite", "1701")])
def test_without_its_oracle_a_question_is_refused_or_recited(absent: str, answer: str):
    config = RaftConfig(num_passages=3, oracle_drop=1.0, absent=absent)  # type: ignore[arg-type]
    (example,) = raft_examples(data(QUESTION), FOUND, config)
    assert [one.chunk_id for one in sorted(example.passages, key=lambda one: one.chunk_id)] == ["far", "near"]
    assert example.answer == answer


def test_the_oracle_is_dropped_as_often_as_said():
    questions = [replace(QUESTION, question_id=f"q{n}") for n in range(400)]
    examples = raft_examples(data(*questions), {}, RaftConfig(oracle_drop=0.3))
    dropped = sum(example.answer == NOT_IN_DOCUMENTS for example in examples)
    assert 90 <= dropped <= 150


def test_another_question_changes_no_example():
    alone = raft_examples(data(QUESTION), FOUND, RaftConfig(oracle_drop=0.5))
    other = TrainingQuestion("p", "Who?", (), is_unanswerable=True)
    assert raft_examples(data(other, QUESTION), FOUND, RaftConfig(oracle_drop=0.5))[1:] == alone


def test_an_unanswerable_question_is_refused_over_what_was_found():
    question = TrainingQuestion("q", "Who?", is_unanswerable=True)
    (example,) = raft_examples(data(question), FOUND, RaftConfig())
    assert example.answer == NOT_IN_DOCUMENTS
    assert len(example.passages) == 4


def test_a_question_whose_passage_does_not_hold_its_answer_is_left_out():
    wrong = replace(QUESTION, positive_ids=("far",))
    with pytest.raises(DataError, match="no question of 'test'"):
        raft_examples(data(wrong), FOUND, RaftConfig())


def test_an_unknown_passage_is_named():
    with pytest.raises(DataError, match="'ghost'"):
        raft_examples(data(QUESTION), {"q": ("ghost",)}, RaftConfig())


def test_shares_out_of_bounds_are_refused():
    with pytest.raises(ConfigError, match="oracle_drop"):
        RaftConfig(oracle_drop=1.5)


SHOWN = (PromptPassage("gold", "mill", "The mill was built in 1701."),)


def outcome(answer: str, *, is_correct: bool, is_supported: bool) -> Outcome:
    return Outcome(CitedAnswer("When?", SHOWN, answer), is_correct, is_supported)


def test_a_pair_prefers_what_is_right_and_supported():
    good = outcome("1701 [1]", is_correct=True, is_supported=True)
    lucky = outcome("1701", is_correct=True, is_supported=False)
    wrong = outcome("1880 [1]", is_correct=False, is_supported=True)
    pairs = preference_pairs([wrong, good, lucky])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        (good.example, wrong.example),
        (good.example, lucky.example),
    ]
    assert preference_pairs([wrong, lucky]) == []


def test_answers_over_other_passages_are_not_compared():
    good = outcome("1701 [1]", is_correct=True, is_supported=True)
    other = Outcome(CitedAnswer("When?", (), "1880"), is_correct=False, is_supported=False)
    assert preference_pairs([good, other]) == []


def test_search_loops_of_a_question_pair_whatever_they_found():
    good = Outcome(SearchTrace("When?", (TraceTurn("search: a"), TraceTurn("answer: x"))), True, True)
    bad = Outcome(SearchTrace("When?", (TraceTurn("answer: y"),)), False, False)
    assert len(preference_pairs([good, bad])) == 1


def test_a_question_asked_often_gives_a_bounded_number_of_pairs():
    outcomes = [outcome(f"1701 [1] {n}", is_correct=True, is_supported=True) for n in range(5)]
    outcomes += [outcome(f"no {n}", is_correct=False, is_supported=False) for n in range(5)]
    assert len(preference_pairs(outcomes, max_per_question=3)) == 3


def feedback(**fields: object) -> FeedbackRow:
    row = {
        "feedback_id": "f",
        "question": "When?",
        "answer": "1880 [1]",
        "provenance": Provenance("run"),
        "consent": True,
        "passages": (FeedbackPassage("gold", "The mill was built in 1701.", "mill"),),
    }
    return FeedbackRow(**{**row, **fields})  # type: ignore[arg-type]


def test_a_correction_is_preferred_over_what_it_corrects():
    (pair,) = preference_pairs(feedback_outcomes(feedback(corrected_answer="1701 [1]", rating="down")))
    assert (pair.chosen.answer, pair.rejected.answer) == ("1701 [1]", "1880 [1]")  # type: ignore[union-attr]


def test_feedback_without_consent_or_judgement_teaches_nothing():
    assert feedback_outcomes(feedback(consent=False, rating="up")) == []
    assert feedback_outcomes(feedback()) == []


def test_an_answer_over_a_passage_judged_wrong_is_not_supported():
    wrong = (FeedbackPassage("gold", "text", verdict="wrong"),)
    (one,) = feedback_outcomes(feedback(rating="up", passages=wrong))
    assert (one.is_correct, one.is_supported) == (True, False)
