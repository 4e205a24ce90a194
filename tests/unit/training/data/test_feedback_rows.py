"""People's judgements become questions by stated rules, and nothing without consent."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from training.data import FeedbackPassage, FeedbackRow, Provenance, SetSource, read_counted, read_set
from training.errors import DataError
from training.types import TrainingPassage, TrainingSet

LIBRARY = TrainingSet(
    "library", (TrainingPassage("a.md#0", "Watt improved it."), TrainingPassage("a.md#1", "It ran on coal."))
)
ROW = FeedbackRow(
    "f1",
    "Who improved it?",
    "Newcomen",
    Provenance("run-1", release="r1", tenant="default"),
    consent=True,
    rating="down",
    corrected_answer="Watt",
    passages=(
        FeedbackPassage("a.md#0", "Watt improved it.", verdict="right"),
        FeedbackPassage("a.md#1", "It ran on coal.", verdict="wrong"),
    ),
)

RIGHT = asdict(ROW.passages[0])


def feedback_file(folder: Path, *rows: FeedbackRow) -> Path:
    path = folder / "feedback.jsonl"
    path.write_text("\n".join(row.to_json() for row in rows))
    return path


def test_judged_row_teaches_the_correction_and_both_labels(tmp_path):
    (question,) = read_set("feedback", feedback_file(tmp_path, ROW), library=LIBRARY).questions
    assert (question.question_id, question.answers) == ("f1", ("Watt",))
    assert (question.positive_ids, question.negative_ids) == (("a.md#0",), ("a.md#1",))


def test_given_answer_is_taught_only_where_it_was_rated_up(tmp_path):
    up = replace(ROW, feedback_id="up", rating="up", corrected_answer="")
    down = replace(up, feedback_id="down", rating="down")
    read = read_set("feedback", feedback_file(tmp_path, up, down), library=LIBRARY)
    assert [one.answers for one in read.questions] == [("Newcomen",), ()]


def test_rows_without_consent_or_judgement_are_left_out_and_counted(tmp_path):
    silent = replace(ROW, feedback_id="f3", rating=None, corrected_answer="", passages=())
    path = feedback_file(tmp_path, ROW, replace(ROW, feedback_id="f2", consent=False), silent)
    counted = read_counted(SetSource("feedback", path, library=LIBRARY))
    assert [one.question_id for one in counted.training_set.questions] == ["f1"]
    assert counted.left_out == {"rows without consent": 1, "rows that judge nothing": 1}


def test_a_row_whose_consent_is_not_stated_is_left_out(tmp_path):
    fields = asdict(ROW)
    del fields["consent"]
    path = feedback_file(tmp_path, ROW)
    path.write_text(f"{path.read_text()}\n{json.dumps({**fields, 'feedback_id': 'f2'})}")
    assert read_counted(SetSource("feedback", path, library=LIBRARY)).left_out == {"rows without consent": 1}


def test_unanswerable_feedback_is_kept_as_such(tmp_path):
    row = replace(ROW, corrected_answer="", is_unanswerable=True, passages=ROW.passages[1:])
    (question,) = read_set("feedback", feedback_file(tmp_path, row), library=LIBRARY).questions
    assert question.is_unanswerable
    assert question.answers == ()


def test_verdict_on_a_passage_that_has_changed_since_is_not_used(tmp_path):
    stale = replace(ROW, passages=(replace(ROW.passages[0], text="Watt built it."), ROW.passages[1]))
    counted = read_counted(SetSource("feedback", feedback_file(tmp_path, stale), library=LIBRARY))
    assert counted.training_set.questions[0].positive_ids == ()
    assert counted.left_out == {"passages whose text has changed since": 1}


def test_passage_outside_the_library_is_refused_or_dropped(tmp_path):
    row = replace(ROW, passages=(*ROW.passages, FeedbackPassage("gone.md", "Gone.", verdict="right")))
    path = feedback_file(tmp_path, row)
    place = f"{path}:1: question 'f1' is labelled with passage 'gone.md'"
    with pytest.raises(DataError, match=re.escape(place)):
        read_set("feedback", path, library=LIBRARY)
    counted = read_counted(SetSource("feedback", path, library=LIBRARY), faulty="drop")
    assert counted.training_set.questions[0].positive_ids == ("a.md#0",)
    assert counted.left_out == {"labels outside the library": 1}


def test_without_a_library_the_shown_texts_are_the_passages(tmp_path):
    read = read_set("feedback", feedback_file(tmp_path, ROW, replace(ROW, feedback_id="f2")))
    assert [one.text for one in read.passages] == ["Watt improved it.", "It ran on coal."]
    assert read.questions[0].positive_ids == (read.passages[0].passage_id,)
    assert read.questions[0].group == read.questions[1].group


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": "meh"}, "field 'rating' must be one of up, down or null, got 'meh'"),
        ({"provenance": None}, "provenance: expected a JSON object, got null"),
        ({"question": ""}, "field 'question' is missing or empty"),
        ({"is_unanswerable": True}, "'is_unanswerable' is true beside a right passage"),
        ({"passages": [RIGHT, {**RIGHT, "verdict": "wrong"}]}, "judged right and wrong"),
    ],
)
def test_row_that_contradicts_itself_is_named(tmp_path, change, message):
    path = tmp_path / "feedback.jsonl"
    path.write_text(f"{ROW.to_json()}\n{json.dumps({**asdict(ROW), 'feedback_id': 'f2', **change})}")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ")) as caught:
        read_set("feedback", path, library=LIBRARY)
    assert message in str(caught.value)
