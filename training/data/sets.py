"""Operations on whole training sets: joining, splitting, and the fingerprint that manifests record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, replace

from training.errors import ConfigError, DataError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


def fingerprint(training_set: TrainingSet) -> str:
    """Return sha256 (hex) over all ids, texts, answers, labels and groups, in order; the name is left out."""
    digest = hashlib.sha256()
    for item in (*training_set.passages, *training_set.questions):
        # One JSON list a line: no text can imitate the border between two fields or items.
        digest.update(f"{type(item).__name__}{json.dumps(astuple(item))}\n".encode())
    return digest.hexdigest()


def joined(sets: Mapping[str, TrainingSet], name: str) -> TrainingSet:
    """Return one set of all passages and questions, every id and group as `PREFIX/ID`.

    Args:
        sets: Sets by the prefix that keeps their ids apart.
        name: Name of the result.

    Raises:
        ConfigError: There are no sets, or a prefix is empty or holds a slash.
    """
    if not sets:
        raise ConfigError("joined needs at least one set, got none")
    passages: list[TrainingPassage] = []
    questions: list[TrainingQuestion] = []
    for prefix, one in sets.items():
        if not prefix or "/" in prefix:
            raise ConfigError(f"a prefix must be a plain name without a slash, got {prefix!r}")
        passages += [replace(p, passage_id=f"{prefix}/{p.passage_id}") for p in one.passages]
        questions += [_prefixed(question, prefix) for question in one.questions]
    return TrainingSet(name, tuple(passages), tuple(questions))


def _prefixed(question: TrainingQuestion, prefix: str) -> TrainingQuestion:
    return replace(
        question,
        question_id=f"{prefix}/{question.question_id}",
        positive_ids=tuple(f"{prefix}/{one}" for one in question.positive_ids),
        negative_ids=tuple(f"{prefix}/{one}" for one in question.negative_ids),
        group=f"{prefix}/{question.group}" if question.group else "",
    )


def split_by_group(
    training_set: TrainingSet, *, dev_share: float, seed: int
) -> tuple[TrainingSet, TrainingSet]:
    """Return (train, dev) with every group on one side; the same for the same ids and seed, in any order.

    Groups are taken for dev in the order of a hash of (seed, group) while dev stays within its share of
    questions, at least one. Train is without the passages that only dev questions have as positive (the rule
    of `LeakageGuard`); dev keeps all passages, so that its search is as hard as the whole library's.

    Args:
        training_set: Questions without a group are groups of their own.
        dev_share: Share of the questions that dev should have, in (0, 1).
        seed: Chooses the split.

    Raises:
        ConfigError: The share is out of its range.
        DataError: There are fewer than two groups.
    """
    if not 0.0 < dev_share < 1.0:
        raise ConfigError(f"dev_share must lie between 0 and 1, got {dev_share}")
    sizes: dict[tuple[str, str], int] = {}
    for question in training_set.questions:
        sizes[_group_of(question)] = sizes.get(_group_of(question), 0) + 1
    if len(sizes) < 2:
        raise DataError(
            f"{training_set.name}: {len(sizes)} group of questions cannot be split in two; "
            "use another set for dev, or clear the groups"
        )
    order = sorted(sizes, key=lambda group: hashlib.sha256(json.dumps([seed, *group]).encode()).digest())
    budget = dev_share * len(training_set.questions)
    dev_groups: set[tuple[str, str]] = set()
    num_dev = 0
    for group in order:
        if num_dev + sizes[group] <= budget:
            dev_groups.add(group)
            num_dev += sizes[group]
    if not dev_groups:
        # Every group is larger than the share: the smallest comes nearest to it.
        dev_groups.add(min(order, key=lambda group: sizes[group]))
    dev = tuple(one for one in training_set.questions if _group_of(one) in dev_groups)
    train = tuple(one for one in training_set.questions if _group_of(one) not in dev_groups)
    of_train = {passage_id for question in train for passage_id in question.positive_ids}
    of_dev = {passage_id for question in dev for passage_id in question.positive_ids}
    return (
        without_passages(
            replace(training_set, name=f"{training_set.name}:train", questions=train), of_dev - of_train
        ),
        replace(training_set, name=f"{training_set.name}:dev", questions=dev),
    )


def _group_of(question: TrainingQuestion) -> tuple[str, str]:
    return ("group", question.group) if question.group else ("question", question.question_id)


def without_passages(training_set: TrainingSet, passage_ids: set[str]) -> TrainingSet:
    """Return the set without some passages, and without the labels that name them."""
    if not passage_ids:
        return training_set
    return replace(
        training_set,
        passages=tuple(one for one in training_set.passages if one.passage_id not in passage_ids),
        questions=tuple(
            replace(
                question,
                positive_ids=tuple(one for one in question.positive_ids if one not in passage_ids),
                negative_ids=tuple(one for one in question.negative_ids if one not in passage_ids),
            )
            for question in training_set.questions
        ),
    )
