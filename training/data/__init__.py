"""Training data: readers, checks, splits, the leakage guard, and questions made from a library.

Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.answers import AnswerText, exact_match, f1, holds_answer, normalise
    from training.data.draft import Faulty
    from training.data.feedback import FeedbackPassage, FeedbackRow, Provenance
    from training.data.leakage import LeakageGuard, LeakageReport, LeakedQuestion
    from training.data.library import read_library, record_name, with_questions
    from training.data.ranking import IndexRanker, PassageRanker, RankedPassage, RetrieverRanker, Searches
    from training.data.reader import (
        CountedSet,
        SetKind,
        SetSource,
        questions_without_answer,
        read_counted,
        read_set,
    )
    from training.data.sets import fingerprint, joined, split_by_group
    from training.data.synthesis import SynthesisConfig, cloze_questions, round_trip, synthesised
    from training.data.written_questions import QuestionWriter

_HOMES = {
    "AnswerText": "training.data.answers",
    "CountedSet": "training.data.reader",
    "Faulty": "training.data.draft",
    "FeedbackPassage": "training.data.feedback",
    "FeedbackRow": "training.data.feedback",
    "IndexRanker": "training.data.ranking",
    "LeakageGuard": "training.data.leakage",
    "LeakageReport": "training.data.leakage",
    "LeakedQuestion": "training.data.leakage",
    "PassageRanker": "training.data.ranking",
    "Provenance": "training.data.feedback",
    "QuestionWriter": "training.data.written_questions",
    "RankedPassage": "training.data.ranking",
    "RetrieverRanker": "training.data.ranking",
    "Searches": "training.data.ranking",
    "SetKind": "training.data.reader",
    "SetSource": "training.data.reader",
    "SynthesisConfig": "training.data.synthesis",
    "cloze_questions": "training.data.synthesis",
    "exact_match": "training.data.answers",
    "f1": "training.data.answers",
    "fingerprint": "training.data.sets",
    "holds_answer": "training.data.answers",
    "joined": "training.data.sets",
    "normalise": "training.data.answers",
    "questions_without_answer": "training.data.reader",
    "read_counted": "training.data.reader",
    "read_library": "training.data.library",
    "read_set": "training.data.reader",
    "record_name": "training.data.library",
    "round_trip": "training.data.synthesis",
    "split_by_group": "training.data.sets",
    "synthesised": "training.data.synthesis",
    "with_questions": "training.data.library",
}
"""Where each public name lives."""

__all__ = [
    "AnswerText",
    "CountedSet",
    "Faulty",
    "FeedbackPassage",
    "FeedbackRow",
    "IndexRanker",
    "LeakageGuard",
    "LeakageReport",
    "LeakedQuestion",
    "PassageRanker",
    "Provenance",
    "QuestionWriter",
    "RankedPassage",
    "RetrieverRanker",
    "Searches",
    "SetKind",
    "SetSource",
    "SynthesisConfig",
    "cloze_questions",
    "exact_match",
    "f1",
    "fingerprint",
    "holds_answer",
    "joined",
    "normalise",
    "questions_without_answer",
    "read_counted",
    "read_library",
    "read_set",
    "record_name",
    "round_trip",
    "split_by_group",
    "synthesised",
    "with_questions",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
