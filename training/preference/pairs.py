"""Preference pairs: of two outcomes of a question, the right and supported one over the other."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from serving.prompt import PromptPassage
from training.data.answers import normalise
from training.data.feedback import FeedbackRow
from training.preference.examples import CitedAnswer, SearchTrace


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a question once, and how it was judged."""

    example: CitedAnswer | SearchTrace
    """The answer with what led to it."""
    is_correct: bool
    """Whether it is an accepted answer, or a person rated it up."""
    is_supported: bool
    """Whether its citations hold: the passages say what it says."""

    @property
    def is_good(self) -> bool:
        """Return whether it may be preferred; a right answer by luck may not."""
        return self.is_correct and self.is_supported

    @property
    def said(self) -> str:
        """Return what was answered, as answers are compared."""
        example = self.example
        return normalise(example.answer if isinstance(example, CitedAnswer) else example.turns[-1].text)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two outcomes that begin with the same prompt."""

    chosen: CitedAnswer | SearchTrace
    """Supported and correct."""
    rejected: CitedAnswer | SearchTrace
    """Not."""


def preference_pairs(outcomes: Iterable[Outcome], *, max_per_question: int = 4) -> list[PreferencePair]:
    """Return pairs of a good and a bad outcome of the same prompt, in the order they came.

    Args:
        outcomes: Judged outcomes; those of a search loop pair by question, others by question and passages.
        max_per_question: Most pairs of one prompt, so that a question asked often does not drown the others.
    """
    groups: dict[object, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[_prompt_of(outcome.example)].append(outcome)
    pairs: list[PreferencePair] = []
    for group in groups.values():
        good = [one for one in group if one.is_good]
        bad = [one for one in group if not one.is_good]
        found = [
            PreferencePair(chosen.example, rejected.example)
            for chosen, rejected in itertools.product(good, bad)
            if chosen.example != rejected.example
        ]
        pairs += found[:max_per_question]
    return pairs


def _prompt_of(example: CitedAnswer | SearchTrace) -> object:
    if isinstance(example, SearchTrace):
        return ("loop", example.question)
    return ("rag", example.question, example.passages, example.history)


def feedback_outcomes(row: FeedbackRow) -> list[Outcome]:
    """Return what a person's feedback says of answers: of the given one, and of a corrected one.

    A row without consent or without a judgement of its answer gives none. A passage that was judged wrong
    makes the given answer unsupported.
    """
    if not row.consent or (row.rating is None and not row.corrected_answer):
        return []
    passages = tuple(PromptPassage(one.passage_id, one.title, one.text) for one in row.passages)
    is_supported = not any(one.verdict == "wrong" for one in row.passages)
    outcomes: list[Outcome] = []
    if row.answer:
        is_liked = row.rating == "up" and not row.corrected_answer
        outcomes.append(Outcome(CitedAnswer(row.question, passages, row.answer), is_liked, is_supported))
    if row.corrected_answer:
        outcomes.append(
            Outcome(
                CitedAnswer(row.question, passages, row.corrected_answer), is_correct=True, is_supported=True
            )
        )
    return outcomes
