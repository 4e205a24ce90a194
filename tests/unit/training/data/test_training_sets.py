"""Joining, splitting and fingerprints of whole sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.data import LeakageGuard, fingerprint, joined, split_by_group
from training.errors import ConfigError, DataError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


def small_set(num_groups: int = 10, per_group: int = 3) -> TrainingSet:
    passages = [TrainingPassage(f"p{n}", f"text number {n}") for n in range(num_groups + 1)]
    questions = [
        TrainingQuestion(
            f"q{group}-{n}",
            f"{n} what about topic {group}",
            positive_ids=(f"p{group}",),
            negative_ids=(f"p{(group + 1) % num_groups}",),
            group=f"g{group}",
        )
        for group in range(num_groups)
        for n in range(per_group)
    ]
    return TrainingSet("small", tuple(passages), tuple(questions))


def test_split_keeps_each_group_on_one_side():
    train, dev = split_by_group(small_set(), dev_share=0.3, seed=0)
    assert not {one.group for one in train.questions} & {one.group for one in dev.questions}
    assert len(train.questions) + len(dev.questions) == 30
    assert len(dev.questions) == 9


def test_split_follows_from_ids_and_seed_in_any_order():
    whole = small_set()
    turned = replace(whole, questions=whole.questions[::-1])

    def dev_ids(training_set: TrainingSet, seed: int) -> set[str]:
        dev = split_by_group(training_set, dev_share=0.3, seed=seed)[1]
        return {one.question_id for one in dev.questions}

    assert dev_ids(whole, 1) == dev_ids(turned, 1)
    assert len({frozenset(dev_ids(whole, seed)) for seed in range(5)}) > 1


def test_train_is_without_the_gold_passages_of_dev():
    train, dev = split_by_group(small_set(), dev_share=0.3, seed=0)
    kept = {one.passage_id for one in train.passages}
    assert kept.isdisjoint(passage_id for one in dev.questions for passage_id in one.positive_ids)
    assert "p10" in kept
    assert len(dev.passages) == 11
    for question in train.questions:
        assert kept.issuperset((*question.positive_ids, *question.negative_ids))
    assert LeakageGuard([dev]).find(train).passages == ()


def test_split_with_large_groups_has_the_smallest_as_dev():
    whole = small_set(3)
    whole = replace(whole, questions=whole.questions[:-1])
    _, dev = split_by_group(whole, dev_share=0.01, seed=0)
    assert {one.group for one in dev.questions} == {"g2"}


def test_split_that_cannot_be_is_refused():
    with pytest.raises(DataError, match="1 group"):
        split_by_group(small_set(1), dev_share=0.5, seed=0)
    with pytest.raises(ConfigError, match="dev_share"):
        split_by_group(small_set(), dev_share=1.0, seed=0)


def test_joined_sets_keep_ids_apart():
    one = small_set(2)
    both = joined({"a": one, "b": one}, "both")
    assert len({passage.passage_id for passage in both.passages}) == 6
    last = both.questions[-1]
    assert (last.question_id, last.group) == ("b/q1-2", "b/g1")
    assert last.positive_ids == ("b/p1",)
    assert last.negative_ids == ("b/p0",)
    assert joined({"a": TrainingSet("x", (), (TrainingQuestion("q", "t"),))}, "n").questions[0].group == ""
    for sets in ({}, {"": one}, {"a/b": one}):
        with pytest.raises(ConfigError):
            joined(sets, "none")


def test_fingerprint_changes_with_content_and_not_with_the_name():
    whole = small_set(2)
    same = replace(whole, name="other")
    assert fingerprint(whole) == fingerprint(same)
    first = whole.questions[0]
    changed = [
        replace(whole, passages=whole.passages[::-1]),
        replace(whole, passages=(replace(whole.passages[0], title="t"), *whole.passages[1:])),
        *(
            replace(whole, questions=(replace(first, **change), *whole.questions[1:]))
            for change in (
                {"answers": ("x",)},
                {"negative_ids": ()},
                {"is_unanswerable": True},
                {"group": ""},
                {"positive_ids": (*first.positive_ids, *first.negative_ids), "negative_ids": ()},
            )
        ),
    ]
    assert len({fingerprint(one) for one in (whole, *changed)}) == len(changed) + 1
