"""The sets of a job: read, made, guarded against leakage, and named by their fingerprints."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.types import Record
from training.data import (
    LeakageGuard,
    SetSource,
    fingerprint,
    read_counted,
    read_library,
    split_by_group,
    synthesised,
)
from training.errors import DataError, DataMissingError
from training.jobs.job_config import DataConfig, SourceConfig
from training.negatives import MinedNegatives
from training.types import TrainingPassage, TrainingSet

if TYPE_CHECKING:
    from training.jobs.passage_index import PassageIndex

_log = logging.getLogger(__name__)

MakeIndex = Callable[[Sequence[TrainingPassage]], "PassageIndex"]
"""Builds what ranks passages; called only where a set needs it."""


@dataclass(frozen=True, slots=True)
class JobSets:
    """What a job learns from and is judged by."""

    train: TrainingSet
    """Passages and questions trained on."""
    held_out: TrainingSet | None
    """Questions it is judged by, with the passages searched for them; None where there are none."""

    def facts(self) -> dict[str, object]:
        """Return names, sizes and fingerprints, for the job's manifest."""
        found = {"train": self.train} | ({"held_out": self.held_out} if self.held_out else {})
        return {
            name: {
                "name": one.name,
                "num_passages": len(one.passages),
                "num_questions": len(one.questions),
                "fingerprint": fingerprint(one),
            }
            for name, one in found.items()
        }


def read_sets(config: DataConfig, make_index: MakeIndex, seed: int = 0) -> JobSets:
    """Return the sets of a job; the same on every rank.

    Args:
        config: Where they come from.
        make_index: Ranks passages for synthesis.
        seed: Of the split.

    Raises:
        DataError: A file is missing, malformed or empty, a label is outside its set, or (`refuse`) a held-out
            question or passage is trained on.
    """
    train = _read(config.train, config.library)
    if config.synthesis is not None:
        ranker = make_index(train.passages).ranker()
        train = asyncio.run(synthesised(train, ranker, config.synthesis)).training_set
    held_out = None
    if config.held_out is not None:
        held_out = _read(config.held_out, config.library)
        guard = LeakageGuard([held_out])
        if config.leaked == "refuse":
            guard.check(train)
        else:
            train, report = guard.clean(train)
            _log.warning("%s: %s", train.name, report)
    elif config.dev_share > 0:
        train, held_out = split_by_group(train, dev_share=config.dev_share, seed=seed)
    if config.negatives is not None:
        train = MinedNegatives.load(config.negatives).applied_to(train)
    return JobSets(train, held_out)


def _read(source: SourceConfig, library: Path | None) -> TrainingSet:
    if source.kind == "library":
        return read_export(source.path)
    asked = SetSource(
        source.kind,
        source.path,
        source.corpus,
        source.split,
        read_export(library) if library is not None and source.kind == "feedback" else None,
    )
    return read_counted(asked, faulty=source.faulty).training_set


def read_export(path: Path) -> TrainingSet:
    """Return the passages that `graft index export` wrote as JSON lines.

    Raises:
        DataMissingError: The file is not there.
        DataError: A line is no record, or there is none.
    """
    if not path.is_file():
        raise DataMissingError(path)
    return asyncio.run(read_library(_pages(path), f"library:{path.name}"))


async def _pages(path: Path) -> AsyncIterator[list[Record]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                yield [Record(str(values["name"]), str(values["text"]))]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: no record with name and text ({type(error).__name__}: {error}); "
                    "write the file with `graft index export FILE.jsonl`"
                ) from error
