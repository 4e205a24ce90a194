"""Mined negatives as a value: what was found, how, and the id that checkpoints name it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from training.data.sets import fingerprint
from training.errors import CheckpointError, DataError, DataMissingError
from training.index.durable_files import write_durably
from training.types import TrainingSet


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What mining looked at, and what it dropped by which rule; a candidate is counted under the first."""

    num_questions: int
    """Questions of the set."""
    num_without_positive: int
    """Those that were not mined, having no positive."""
    num_positives_not_found: int
    """Positives that the search did not find; with a margin, their questions get random negatives only."""
    num_candidates: int
    """Ranked passages looked at, over all questions."""
    num_positives: int
    """Dropped: a positive, or a copy of one."""
    num_over_margin: int
    """Dropped: too near to the positive, or above it."""
    num_holding_answer: int
    """Dropped: hold an answer."""
    num_outside: int
    """Hits of a live retriever that are not in the set."""
    num_mined: int
    """Negatives from the rank window."""
    num_random: int
    """Negatives drawn at random where the window held too few."""
    num_short: int
    """Questions that still have fewer than asked for."""
    mean_positive_score: float | None
    """Over the positives found; None where none was."""
    mean_negative_score: float | None
    """Over the negatives from the window; None where there are none."""


@dataclass(frozen=True, slots=True)
class MinedNegatives:
    """Negatives of a training set."""

    set_fingerprint: str
    """`fingerprint` of the set they were mined for."""
    negatives: Mapping[str, tuple[str, ...]]
    """Question id to passage ids, hardest first, random ones last; only questions with a positive."""
    report: MiningReport
    """How they came about; no part of the content id."""

    @property
    def content_id(self) -> str:
        """Return sha256 (hex) over the set and the negatives: equal where training would see the same."""
        content = [self.set_fingerprint, sorted((one, list(ids)) for one, ids in self.negatives.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def applied_to(self, training_set: TrainingSet) -> TrainingSet:
        """Return the set with these negatives behind those its questions have already.

        Raises:
            DataError: They were mined for another set.
        """
        if fingerprint(training_set) != self.set_fingerprint:
            raise DataError(f"{training_set.name}: these negatives were mined for another set; mine again")
        return replace(
            training_set,
            questions=tuple(
                replace(
                    one,
                    negative_ids=tuple(
                        dict.fromkeys((*one.negative_ids, *self.negatives.get(one.question_id, ())))
                    ),
                )
                for one in training_set.questions
            ),
        )

    def save(self, path: Path) -> None:
        """Write a JSON file that is either whole or not there; the folder is made where missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "content_id": self.content_id,
            "set_fingerprint": self.set_fingerprint,
            "report": asdict(self.report),
            "negatives": {one: list(ids) for one, ids in self.negatives.items()},
        }
        write_durably(path, lambda file: file.write(json.dumps(content).encode()))

    @classmethod
    def load(cls, path: Path) -> MinedNegatives:
        """Return what `save` wrote.

        Raises:
            DataMissingError: The file is not there.
            CheckpointError: It is damaged, or its content is not what its id says.
        """
        if not path.is_file():
            raise DataMissingError(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            report = MiningReport(**{one.name: content["report"][one.name] for one in fields(MiningReport)})
            negatives = {one: tuple(ids) for one, ids in content["negatives"].items()}
            mined = cls(content["set_fingerprint"], negatives, report)
            said = content["content_id"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({type(error).__name__}: {error}); mine again"
            ) from error
        if mined.content_id != said:
            raise CheckpointError(f"{path} does not hold what its content id says; mine again")
        return mined
