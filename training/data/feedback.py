"""The platform's feedback as JSON lines: what people said about answers and passages, turned into questions.

A row is one judged answer (`FeedbackRow`); writer and reader are here, so that they cannot drift apart.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from training.data.answers import normalise
from training.data.draft import SetDraft, content_id
from training.data.rows import Row, read_rows
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

Rating = Literal["up", "down"]
"""A person's judgement of the whole answer."""
Verdict = Literal["right", "wrong"]
"""A person's judgement of one passage."""


@dataclass(frozen=True, slots=True)
class FeedbackPassage:
    """A passage that was shown with the answer."""

    passage_id: str
    """Name of its record as `IndexAdmin.export` gives it: the document, or `<document>#<ordinal>`."""
    text: str
    """As shown; a library whose passage differs now has moved on, and the verdict is not used."""
    title: str = ""
    """Title of its document; empty where there is none."""
    verdict: Verdict | None = None
    """What the person said; None for nothing."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a judgement comes from, so that it can be traced and deleted."""

    run_id: str
    """The run that answered."""
    release: str = ""
    """Release that answered."""
    index_version: str = ""
    """Index version that was searched."""
    library: str = ""
    """Library that was searched."""
    tenant: str = ""
    """Whose it is."""
    user: str = ""
    """Opaque id of who judged, never a name or an address."""


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One line of a feedback file."""

    feedback_id: str
    """Unique; becomes the question's id."""
    question: str
    """The user's words."""
    answer: str
    """What the platform said; empty where it refused."""
    provenance: Provenance
    """Where it comes from."""
    consent: bool
    """Whether the person agreed to training on it; without, the reader leaves the row out."""
    rating: Rating | None = None
    """Judgement of the answer; None for none."""
    corrected_answer: str = ""
    """What the answer should have been; empty where none was given."""
    is_unanswerable: bool = False
    """Whether the person said that the documents hold no answer."""
    passages: tuple[FeedbackPassage, ...] = ()
    """As shown, in order."""

    def to_json(self) -> str:
        """Return the row as one line without its line break."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_feedback(path: Path, draft: SetDraft, *, library: TrainingSet | None) -> None:
    """Add one question per row that teaches something, by these rules.

    A row without consent is left out. The answer taught is the corrected one, else the given one where it was
    rated up. Passages judged right are positives, judged wrong negatives. A row with neither answer, label
    nor the word that there is no answer is left out. Each reason is counted. The group is the normalised
    question.

    Args:
        path: JSON lines of `FeedbackRow`.
        draft: What is filled.
        library: The passages that ids refer to; None takes the texts in the rows as passages.
    """
    if library is not None:
        for passage in library.passages:
            draft.add_passage(passage, library.name)
    for row in read_rows(path):
        if not row.flag("consent", default=False):
            draft.left_out["rows without consent"] += 1
            continue
        question = _question_of(row, draft, has_library=library is not None)
        if question.answers or question.is_unanswerable or question.positive_ids or question.negative_ids:
            draft.add_question(question, row.place)
        else:
            draft.left_out["rows that judge nothing"] += 1


def _question_of(row: Row, draft: SetDraft, *, has_library: bool) -> TrainingQuestion:
    Row.of(row.fields.get("provenance"), f"{row.place}: provenance").text("run_id")
    rating = _choice(row, "rating", ("up", "down"))
    corrected = row.optional_text("corrected_answer")
    answer = corrected or (row.optional_text("answer") if rating == "up" else "")
    is_unanswerable = row.flag("is_unanswerable", default=False)
    labels: dict[str, list[str]] = {"right": [], "wrong": []}
    for passage in row.rows("passages", required=False):
        verdict = _choice(passage, "verdict", ("right", "wrong"))
        passage_id = _passage_id(passage, draft, has_library=has_library)
        if verdict is not None and passage_id is not None:
            labels[verdict].append(passage_id)
    both = set(labels["right"]) & set(labels["wrong"])
    if both:
        raise row.error(f"passage '{min(both)}' is judged right and wrong")
    if is_unanswerable and (labels["right"] or corrected):
        raise row.error("'is_unanswerable' is true beside a right passage or a corrected answer")
    question = row.text("question")
    return TrainingQuestion(
        question_id=row.identifier("feedback_id"),
        text=question,
        answers=(answer,) if answer and not is_unanswerable else (),
        positive_ids=tuple(dict.fromkeys(labels["right"])),
        negative_ids=tuple(dict.fromkeys(labels["wrong"])),
        is_unanswerable=is_unanswerable,
        group=normalise(question),
    )


def _passage_id(row: Row, draft: SetDraft, *, has_library: bool) -> str | None:
    """Return the id that a label gets; None where the library's passage is another text now."""
    if not has_library:
        return draft.add_text(row.optional_text("title"), row.text("text"))
    passage_id = row.text("passage_id")
    known: TrainingPassage | None = draft.passages.get(passage_id)
    shown = row.optional_text("text")
    if known is not None and shown and content_id(shown) != content_id(known.text):
        draft.left_out["passages whose text has changed since"] += 1
        return None
    return passage_id


def _choice(row: Row, key: str, choices: tuple[str, ...]) -> str | None:
    value = row.optional_text(key)
    if value and value not in choices:
        raise row.error(f"field '{key}' must be one of {', '.join(choices)} or null, got '{value}'")
    return cast("str | None", value or None)
