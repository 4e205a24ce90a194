"""A training set while it is being read: ids are unique, labels are known, places are remembered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from training.errors import DataError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

Faulty = Literal["refuse", "drop"]
"""What becomes of questions and labels that break a rule: an error, or they are left out and counted."""


def content_id(*texts: str) -> str:
    """Return an id that follows from texts alone (16 hex digits of sha256), whatever their spacing."""
    spaced = "\0".join(" ".join(text.split()) for text in texts)
    return hashlib.sha256(spaced.encode()).hexdigest()[:16]


class SetDraft:
    """What a reader fills; `finish` makes the set of it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.left_out: Counter[str] = Counter()
        """Rows that were read and not used, by reason."""
        self._passages: dict[str, TrainingPassage] = {}
        self._questions: dict[str, TrainingQuestion] = {}
        self._passage_places: dict[str, str] = {}
        self._question_places: dict[str, str] = {}

    @property
    def passages(self) -> Mapping[str, TrainingPassage]:
        """Return the passages so far, by id."""
        return self._passages

    def add_text(self, title: str, text: str) -> str:
        """Add a passage that has no id of its own, once, and return the id that its content gives it."""
        passage_id = content_id(title, text)
        self._passages.setdefault(passage_id, TrainingPassage(passage_id, text, title))
        return passage_id

    def add_passage(self, passage: TrainingPassage, place: str) -> None:
        """Add a passage that has an id.

        Raises:
            DataError: The id is another passage's; the message names both places.
        """
        if passage.passage_id in self._passages:
            before = self._passage_places.get(passage.passage_id, "before")
            raise DataError(
                f"{place}: passage id '{passage.passage_id}' stands twice; the first is at {before}"
            )
        self._passages[passage.passage_id] = passage
        self._passage_places[passage.passage_id] = place

    def add_question(self, question: TrainingQuestion, place: str) -> None:
        """Add a question.

        Raises:
            DataError: The id is another question's; the message names both places.
        """
        before = self._question_places.get(question.question_id)
        if before is not None:
            raise DataError(
                f"{place}: question id '{question.question_id}' stands twice; the first is at {before}"
            )
        self._questions[question.question_id] = question
        self._question_places[question.question_id] = place

    def place_of(self, question_id: str) -> str:
        """Return where a question was read."""
        return self._question_places[question_id]

    def finish(self, name: str, *, faulty: Faulty) -> TrainingSet:
        """Return the set, its passages and questions in the order they came.

        Args:
            name: Where it comes from.
            faulty: What happens to a label that names a passage which is not there. `drop` takes the label
                away, and the question where it was the last positive one; both are counted in `left_out`.

        Raises:
            DataError: There are no passages or no questions, or a label is outside and `faulty` is `refuse`.
        """
        questions = [self._with_known_labels(question, faulty) for question in self._questions.values()]
        kept = tuple(question for question in questions if question is not None)
        if not self._passages or not kept:
            missing = "questions" if self._passages else "passages"
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"{name}: holds no {missing} to train on{f' ({reasons})' if reasons else ''}")
        return TrainingSet(name, tuple(self._passages.values()), kept)

    def _with_known_labels(self, question: TrainingQuestion, faulty: Faulty) -> TrainingQuestion | None:
        labels = (*question.positive_ids, *question.negative_ids)
        outside = {one for one in labels if one not in self._passages}
        if not outside:
            return question
        if faulty == "refuse":
            raise DataError(
                f"{self.place_of(question.question_id)}: question '{question.question_id}' is labelled with "
                f"passage '{min(outside)}', which is not among the {len(self._passages)} passages; pass the "
                "library it belongs to, or faulty='drop' to do without such labels"
            )
        self.left_out["labels outside the library"] += len(outside)
        positives = tuple(one for one in question.positive_ids if one not in outside)
        if question.positive_ids and not positives:
            self.left_out["questions whose every right passage is outside the library"] += 1
            return None
        negatives = tuple(one for one in question.negative_ids if one not in outside)
        return replace(question, positive_ids=positives, negative_ids=negatives)
