"""One front over all readers of training data: a kind and a path in, a checked `TrainingSet` out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from training.data.answers import JUDGEMENTS, AnswerText, normalise
from training.data.beir import read_beir, read_scifact
from training.data.draft import Faulty, SetDraft
from training.data.feedback import read_feedback
from training.data.multihop import read_hotpotqa, read_musique, read_pool
from training.data.reading_files import read_clapnq, read_medquad, read_nq, read_squad
from training.errors import ConfigError, DataError
from training.types import TrainingQuestion, TrainingSet

logger = logging.getLogger(__name__)

SetKind = Literal[
    "squad", "nq", "clapnq", "medquad", "hotpotqa", "2wiki", "musique", "beir", "scifact", "feedback"
]
"""Formats that can be read."""


@dataclass(frozen=True, slots=True)
class SetSource:
    """Where a training set is read from."""

    kind: SetKind
    """The format."""
    path: Path
    """A file, or for `beir` a folder."""
    corpus: Path | None = None
    """More passages (`read_pool`); for `scifact` the abstracts, when they are not beside the claims."""
    split: str = "train"
    """Which `qrels/SPLIT.tsv` of a `beir` folder."""
    library: TrainingSet | None = None
    """Passages that `feedback` refers to."""


@dataclass(frozen=True, slots=True)
class CountedSet:
    """A set, and what was left out on the way."""

    training_set: TrainingSet
    """What remains."""
    left_out: Mapping[str, int]
    """Rows, questions and labels that were not used, by reason; empty when all were."""


_Read = Callable[[SetSource, SetDraft], None]


def _with_pool(read: Callable[[Path, SetDraft], None]) -> _Read:
    def read_both(source: SetSource, draft: SetDraft) -> None:
        read(source.path, draft)
        if source.corpus is not None:
            read_pool(source.corpus, draft)

    return read_both


_READERS: dict[SetKind, _Read] = {
    "squad": _with_pool(read_squad),
    "nq": _with_pool(read_nq),
    "clapnq": _with_pool(read_clapnq),
    "medquad": _with_pool(read_medquad),
    "hotpotqa": _with_pool(read_hotpotqa),
    "2wiki": _with_pool(read_hotpotqa),
    "musique": _with_pool(read_musique),
    "beir": lambda source, draft: read_beir(source.path, draft, split=source.split),
    "scifact": lambda source, draft: read_scifact(source.path, draft, corpus=source.corpus),
    "feedback": lambda source, draft: read_feedback(source.path, draft, library=source.library),
}
_FREE_ANSWERS = frozenset(["clapnq", "feedback"])
"""Kinds whose answers are people's own sentences; a passage need not hold them word for word."""


def read_set(
    kind: SetKind,
    path: Path,
    *,
    corpus: Path | None = None,
    split: str = "train",
    library: TrainingSet | None = None,
    faulty: Faulty = "refuse",
) -> TrainingSet:
    """Return the training set at a path; arguments and errors as in `SetSource` and `read_counted`."""
    return read_counted(SetSource(kind, path, corpus, split, library), faulty=faulty).training_set


def read_counted(source: SetSource, *, faulty: Faulty = "refuse", name: str = "") -> CountedSet:
    """Return the training set of a source, and counts of what was left out.

    A question has no answer in the corpus when it is not marked unanswerable and: it has neither an answer
    nor a positive passage; or none of its answers stands as whole words in a positive passage (in any
    passage, where none is positive). Answers of `clapnq` and `feedback`, and yes and no, need no words of a
    passage.

    Args:
        source: What to read.
        faulty: `refuse` raises at questions without an answer in the corpus and labels outside it; `drop`
            leaves them out, counts them and logs the counts.
        name: Name of the set; the path's name where empty.

    Raises:
        ConfigError: The source has a field that its kind does not take.
        DataMissingError: A file is not there.
        DataError: Data is malformed or empty, an id stands twice, or a rule above is broken; with file and
            line.
    """
    _check_source(source)
    name = name or f"{source.kind}:{source.path.name}"
    draft = SetDraft()
    _READERS[source.kind](source, draft)
    training_set = draft.finish(name, faulty=faulty)
    lost = questions_without_answer(training_set, are_spans=source.kind not in _FREE_ANSWERS)
    if lost and faulty == "refuse":
        first, num_questions = lost[0], len(training_set.questions)
        shown = f"'{first.question_id}' ({first.text[:80]!r}, answers {list(first.answers)})"
        raise DataError(
            f"{draft.place_of(first.question_id)}: {len(lost)} of {num_questions} questions have no answer "
            f"in the corpus, first {shown}; correct them, add their passages with corpus, or pass "
            "faulty='drop' to leave them out"
        )
    if lost:
        draft.left_out["questions without an answer in the corpus"] = len(lost)
        gone = {question.question_id for question in lost}
        kept = tuple(one for one in training_set.questions if one.question_id not in gone)
        if not kept:
            raise DataError(f"{name}: none of the {len(lost)} questions has an answer in the corpus")
        training_set = replace(training_set, questions=kept)
    for reason, count in draft.left_out.items():
        logger.warning("%s: left out %d %s", name, count, reason)
    return CountedSet(training_set, MappingProxyType(dict(draft.left_out)))


def _check_source(source: SetSource) -> None:
    if source.kind not in _READERS:
        raise ConfigError(f"kind must be one of {', '.join(get_args(SetKind))}, got '{source.kind}'")
    if source.corpus is not None and source.kind in ("beir", "feedback"):
        raise ConfigError(f"kind '{source.kind}' brings its own passages; leave corpus out")
    if source.library is not None and source.kind != "feedback":
        raise ConfigError(f"only kind 'feedback' refers to a library, not '{source.kind}'; leave library out")


def questions_without_answer(
    training_set: TrainingSet, *, are_spans: bool = True
) -> tuple[TrainingQuestion, ...]:
    """Return the questions that nothing in the set answers, by the rule of `read_counted`.

    Args:
        training_set: Its labels name passages of its own.
        are_spans: Whether an answer has to stand in a passage word for word.
    """
    texts = {passage.passage_id: passage.full_text for passage in training_set.passages}
    prepared: dict[str, AnswerText] = {}

    def holds(passage_id: str, answers: tuple[str, ...]) -> bool:
        text = texts[passage_id]
        # Verbatim first: an answer such as "a" normalises to nothing.
        if any(answer in text for answer in answers):
            return True
        if passage_id not in prepared:
            prepared[passage_id] = AnswerText(text)
        return prepared[passage_id].holds(answers)

    def is_answered(question: TrainingQuestion) -> bool:
        if not question.answers:
            return bool(question.positive_ids)
        if not are_spans or any(holds(one, question.answers) for one in question.positive_ids or texts):
            return True
        return any(normalise(answer) in JUDGEMENTS for answer in question.answers)

    return tuple(one for one in training_set.questions if not one.is_unanswerable and not is_answered(one))
