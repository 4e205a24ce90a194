"""Nothing of the evaluation passes the guard, and what it says can be checked."""

from __future__ import annotations

import pytest

from training.data import LeakageGuard, joined, read_set
from training.errors import ConfigError, LeakageError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

EVALUATION = TrainingSet(
    "dev",
    (TrainingPassage("e1", "Watt improved the engine."), TrainingPassage("e2", "Rome is a city.")),
    (
        TrainingQuestion("d1", "Who improved the steam engine of Thomas Newcomen?", ("Watt",), ("e1",)),
        TrainingQuestion("d2", "Where is Rome?", ("Italy",), ("e2",)),
    ),
)


def training(*questions: TrainingQuestion) -> TrainingSet:
    passages = (
        TrainingPassage("t1", "Watt  improved the Engine"),
        TrainingPassage("t2", "Rome is a city."),
        TrainingPassage("t3", "Paris is another."),
    )
    return TrainingSet("train", passages, questions)


OWN = TrainingQuestion("own", "What is Paris to France and the world?", ("city",), ("t3",), ("t1",))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("where is rome", "equal"),
        ("who improved the steam engine of thomas newcomen", "equal"),
        ("who first improved the steam engine of Thomas Newcomen and when", "near"),
        ("who improved the engine", "none"),
        ("Where is Romeo?", "none"),
        ("Who improved the steam boiler of Thomas Newcomen?", "none"),
    ],
)
def test_questions_are_found_equal_or_near(text, kind):
    question = TrainingQuestion("q", text, ("x",), ("t3",))
    report = LeakageGuard([EVALUATION]).find(training(question))
    assert (len(report.equal), len(report.near)) == (int(kind == "equal"), int(kind == "near"))


def test_gold_passages_of_the_evaluation_alone_are_found():
    uses_gold = TrainingQuestion("both", "What kind of place is Rome?", ("city",), ("t2",))
    report = LeakageGuard([EVALUATION]).find(training(OWN, uses_gold))
    assert [one.passage_id for one in report.passages] == ["t1"]
    assert report.num_shared_passages == 1


def test_a_leak_is_an_error_with_counts_and_examples():
    leak = TrainingQuestion("leak", "Where is Rome?", ("Italy",), ("t2",))
    with pytest.raises(LeakageError) as caught:
        LeakageGuard([EVALUATION]).check(training(OWN, leak))
    message = str(caught.value)
    assert "1 of 2 are equal to an evaluation question ('leak' is like 'dev:d2': 'Where is Rome?')" in message
    assert "2 passages are gold of evaluation questions alone ('t1', 't2')" in message


def test_cleaning_takes_leaks_out_with_every_label_on_them():
    leak = TrainingQuestion("leak", "Where is Rome?", ("Italy",), ("t2",))
    guard = LeakageGuard([EVALUATION])
    cleaned, report = guard.clean(training(OWN, leak))
    assert [one.question_id for one in cleaned.questions] == ["own"]
    assert [one.passage_id for one in cleaned.passages] == ["t3"]
    assert cleaned.questions[0].negative_ids == ()
    assert (len(report.equal), len(report.passages)) == (1, 2)
    assert guard.check(cleaned).is_clean


def test_clean_data_passes():
    clean = TrainingSet("train", (TrainingPassage("t3", "Paris is another."),), (
        TrainingQuestion("own", "What is Paris to France and the world?", ("city",), ("t3",)),
    ))  # fmt: skip
    report = LeakageGuard([EVALUATION]).check(clean)
    assert str(report) == "nothing of the evaluation is in the training data"


def test_overlap_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="min_overlap"):
        LeakageGuard([EVALUATION], min_overlap=0.0)


def test_published_splits_leak_and_can_be_cleaned(data_folder):
    """CLAPnq's questions are Natural Questions too, so training on the latter meets the former."""
    evaluation = [
        read_set("squad", data_folder / "squad2" / "dev.json.xz"),
        read_set("nq", data_folder / "nq-gold" / "dev.jsonl.xz"),
        read_set("clapnq", data_folder / "clapnq-dev" / "clapnq_dev_answerable.jsonl.xz"),
    ]
    guard = LeakageGuard(evaluation)
    squad = read_set("squad", data_folder / "squad2" / "train.json.xz")
    nq = read_set("nq", data_folder / "nq-gold" / "train.jsonl.xz")
    assert guard.check(squad).is_clean
    assert "who is given credit for inventing the aqua lung" in [one.text for one in guard.find(nq).near]
    both = joined({"squad": squad, "nq": nq}, "both")
    with pytest.raises(LeakageError):
        guard.check(both)
    cleaned, report = guard.clean(both)
    assert len(cleaned.questions) == len(both.questions) - len(report.equal) - len(report.near)
    assert guard.find(cleaned).is_clean
