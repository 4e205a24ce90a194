"""Values of training: passages, questions and the sets they form. Nothing here imports torch or ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TrainingPassage:
    """A passage that can be retrieved while training."""

    passage_id: str
    """Unique within its set; a chunk id where it comes from a library."""
    text: str
    """The characters, not empty."""
    title: str = ""
    """Title of its document; empty where there is none."""

    @property
    def full_text(self) -> str:
        """Return what an encoder and a reader see: the title, a line break, the text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class TrainingQuestion:
    """A question, its answers and what is known about passages."""

    question_id: str
    """Unique within its set."""
    text: str
    """The user's words."""
    answers: tuple[str, ...] = ()
    """Accepted answers, the first is the one taught; empty when the passages hold none or none is known."""
    positive_ids: tuple[str, ...] = ()
    """Passages known to hold the answer, or what is needed for it."""
    negative_ids: tuple[str, ...] = ()
    """Passages judged wrong, by a person or by mining."""
    is_unanswerable: bool = False
    """Whether it is known that no passage answers it."""
    group: str = ""
    """What a split keeps on one side, such as an article; empty stands for the question alone."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Passages and the questions asked of them."""

    name: str
    """Where it comes from, for logs and manifests."""
    passages: Sequence[TrainingPassage] = field(default_factory=tuple)
    """All that can be retrieved; the row of a passage is its position here."""
    questions: Sequence[TrainingQuestion] = field(default_factory=tuple)
    """In a fixed order: a run's order of samples is a function of it and the seed."""
