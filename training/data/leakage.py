"""A guard that keeps the evaluation out of training: its questions, near copies of them, its gold passages.

Near copies are found by shared word 5-grams, the usual measure of contamination (GPT-3, Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C, with 13-grams for documents; questions are shorter).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.data.answers import normalise
from training.data.sets import without_passages
from training.errors import ConfigError, LeakageError
from training.types import TrainingPassage, TrainingSet

NGRAM_WORDS = 5
"""Words of the runs that near copies share."""
NUM_EXAMPLES = 3
"""Leaks that an error shows of each kind."""


@dataclass(frozen=True, slots=True)
class LeakedQuestion:
    """A training question that is an evaluation question, or nearly."""

    question_id: str
    """The training question."""
    text: str
    """Its words."""
    evaluation_id: str
    """The evaluation question it is like, as `SET:ID`."""
    overlap: float
    """Share of the evaluation question's 5-grams that it holds; 1.0 where the normalised texts are equal."""


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """What of the evaluation stands in a training set."""

    num_questions: int
    """Training questions looked at."""
    equal: tuple[LeakedQuestion, ...]
    """Questions whose normalised text is an evaluation question's."""
    near: tuple[LeakedQuestion, ...]
    """Questions that share enough 5-grams with one."""
    passages: tuple[TrainingPassage, ...]
    """Passages that only evaluation questions have as gold, once the questions above are gone."""
    num_shared_passages: int
    """Gold passages of the evaluation that training questions have as positive too; they may stay."""

    @property
    def is_clean(self) -> bool:
        """Return whether nothing leaks."""
        return not (self.equal or self.near or self.passages)

    def __str__(self) -> str:
        """Return counts with examples, for an error or a log."""
        parts = []
        for kind, leaks in (("equal to", self.equal), ("nearly", self.near)):
            if leaks:
                shown = "; ".join(
                    f"'{one.question_id}' is like '{one.evaluation_id}': {one.text[:80]!r}"
                    for one in leaks[:NUM_EXAMPLES]
                )
                parts.append(
                    f"{len(leaks)} of {self.num_questions} are {kind} an evaluation question ({shown})"
                )
        if self.passages:
            shown = ", ".join(f"'{one.passage_id}'" for one in self.passages[:NUM_EXAMPLES])
            parts.append(f"{len(self.passages)} passages are gold of evaluation questions alone ({shown})")
        return "; ".join(parts) or "nothing of the evaluation is in the training data"


class LeakageGuard:
    """Knows the evaluation's questions and gold passages, and looks for them in training sets."""

    def __init__(self, evaluation: Sequence[TrainingSet], *, min_overlap: float = 0.5) -> None:
        """Prepare the evaluation.

        Args:
            evaluation: All sets that results are reported on.
            min_overlap: A training question that holds at least this share of an evaluation question's
                5-grams is a near copy, in (0, 1]. Evaluation questions under five words are only compared as
                a whole.

        Raises:
            ConfigError: The share is out of its range.
        """
        if not 0.0 < min_overlap <= 1.0:
            raise ConfigError(f"min_overlap must lie in (0, 1], got {min_overlap}")
        self._min_overlap = min_overlap
        self._ids_by_text: dict[str, str] = {}
        self._ids_by_ngram: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._questions: list[tuple[str, int]] = []
        """Per evaluation question: its id, and how many distinct 5-grams it has."""
        self._gold_texts: set[str] = set()
        for one in evaluation:
            self._add(one)

    def _add(self, evaluation: TrainingSet) -> None:
        texts = {passage.passage_id: passage.text for passage in evaluation.passages}
        for question in evaluation.questions:
            evaluation_id = f"{evaluation.name}:{question.question_id}"
            normalised = normalise(question.text)
            self._ids_by_text.setdefault(normalised, evaluation_id)
            ngrams = _ngrams(normalised)
            for ngram in ngrams:
                self._ids_by_ngram[ngram].append(len(self._questions))
            self._questions.append((evaluation_id, len(ngrams)))
            self._gold_texts.update(normalise(texts[one]) for one in question.positive_ids)

    def find(self, training_set: TrainingSet) -> LeakageReport:
        """Return what leaks, in the order of the set."""
        equal, near = [], []
        for question in training_set.questions:
            normalised = normalise(question.text)
            evaluation_id = self._ids_by_text.get(normalised)
            if evaluation_id is not None:
                equal.append(LeakedQuestion(question.question_id, question.text, evaluation_id, 1.0))
                continue
            evaluation_id, overlap = self._nearest(normalised)
            if overlap >= self._min_overlap:
                near.append(LeakedQuestion(question.question_id, question.text, evaluation_id, overlap))
        leaked = {one.question_id for one in (*equal, *near)}
        of_training = {
            passage_id
            for question in training_set.questions
            if question.question_id not in leaked
            for passage_id in question.positive_ids
        }
        gold = [one for one in training_set.passages if normalise(one.text) in self._gold_texts]
        alone = tuple(one for one in gold if one.passage_id not in of_training)
        return LeakageReport(
            len(training_set.questions), tuple(equal), tuple(near), alone, len(gold) - len(alone)
        )

    def _nearest(self, normalised: str) -> tuple[str, float]:
        shared = Counter(
            index for ngram in _ngrams(normalised) for index in self._ids_by_ngram.get(ngram, ())
        )
        overlaps = [(count / self._questions[index][1], -index) for index, count in shared.items()]
        if not overlaps:
            return "", 0.0
        overlap, negated = max(overlaps)
        return self._questions[-negated][0], overlap

    def check(self, training_set: TrainingSet) -> LeakageReport:
        """Return the report of a set in which nothing leaks.

        Raises:
            LeakageError: Something does; the message counts it and shows examples.
        """
        report = self.find(training_set)
        if not report.is_clean:
            raise LeakageError(f"{training_set.name}: {report}; take them out with LeakageGuard.clean")
        return report

    def clean(self, training_set: TrainingSet) -> tuple[TrainingSet, LeakageReport]:
        """Return the set without what leaks, and the report of what was taken out."""
        report = self.find(training_set)
        leaked = {one.question_id for one in (*report.equal, *report.near)}
        kept = tuple(one for one in training_set.questions if one.question_id not in leaked)
        cleaned = replace(training_set, questions=kept)
        return without_passages(cleaned, {one.passage_id for one in report.passages}), report


def _ngrams(normalised: str) -> set[tuple[str, ...]]:
    words = normalised.split()
    return {tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1)}
