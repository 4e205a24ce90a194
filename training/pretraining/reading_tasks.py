"""The unit of reading practice: passages, questions about them, and the answer a good reader gives.

Every source of practice (synthetic facts, real text, human questions) makes `ReadingExample`s; the words the
model is trained to say are written here once, in `Answer.text`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """One question with the answer that the passages support."""

    question: str
    """The user's words."""
    answer: str | None
    """A span of the cited passage, or None when the passages do not hold one."""
    passage_number: int | None
    """Number of the passage that holds the answer, 1 for the first; None when none does."""

    @property
    def text(self) -> str:
        """Return what the assistant says.

        An answer starts with a space: a word's token then is the one it has inside the passage, so that
        answering is copying. Readers of the answer strip it.
        """
        if self.answer is None:
            return NOT_IN_DOCUMENTS
        return f" {self.answer} [{self.passage_number}]"


@dataclass(frozen=True, slots=True)
class ReadingExample:
    """Passages with independent questions about them; each question sees the passages and nothing else."""

    passages: tuple[PromptPassage, ...]
    """Shown as [1]..[n] in this order."""
    questions: tuple[QuestionAnswer, ...]
    """At least one."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question about one passage, before the passages are put in order."""

    question: str
    """The user's words."""
    answer: str | None
    """A span of that passage, or None when it does not hold one."""
    source: int
    """Index of the passage the question is about; -1 when it is about none of those shown."""


def arrange(rng: random.Random, passages: Sequence[PromptPassage], drafts: Sequence[Draft]) -> ReadingExample:
    """Return the example with its passages in random order and every draft numbered accordingly."""
    order = list(range(len(passages)))
    rng.shuffle(order)
    number_of = {source: place + 1 for place, source in enumerate(order)}
    questions = [
        QuestionAnswer(
            draft.question, draft.answer, None if draft.answer is None else number_of[draft.source]
        )
        for draft in drafts
    ]
    rng.shuffle(questions)
    return ReadingExample(tuple(passages[index] for index in order), tuple(questions))


_SENTENCE_END = re.compile(r"(?<=[.!?])[\"\u201d\u2019)]?\s+(?=[A-Z\u201c\"(])")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph; abbreviations may split one, which practice text can bear."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def cut_passages(text: str, max_chars: int) -> list[str]:
    """Return runs of whole sentences of at most `max_chars` characters; longer sentences are left out."""
    passages: list[str] = []
    current = ""
    for paragraph in text.split("\n"):
        for sentence in split_sentences(paragraph):
            if len(sentence) > max_chars:
                continue
            if current and len(current) + 1 + len(sentence) > max_chars:
                passages.append(current)
                current = ""
            current = f"{current} {sentence}" if current else sentence
    if current:
        passages.append(current)
    return passages
