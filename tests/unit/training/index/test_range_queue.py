"""Blocks are handed out once, come back from the dead, and leave slow holders."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes_index import spec_of
from training.index import range_queue
from training.index.range_queue import EncodingJob, Lease, RangeQueue


def job(number: int = 1, weights_hash: str = "w") -> EncodingJob:
    return EncodingJob(spec_of(number, weights_hash=weights_hash), Path("versions"), Path("weights"))


@pytest.fixture
def queue():
    queue = RangeQueue()
    queue.begin(job(), job().spec.ranges)
    return queue


def take_all(queue: RangeQueue, encoder: str) -> list[Lease]:
    leases = []
    while (lease := queue.take(encoder)) is not None:
        leases.append(lease)
    return leases


def num_lacking(queue: RangeQueue) -> int:
    return queue.look([], [1]).num_lacking[1]


def test_each_block_is_handed_out_once_in_order(queue):
    assert [lease.rows for lease in take_all(queue, "a")] == list(job().spec.ranges)
    assert queue.look(["b"], [1]).wanted == []


def test_oldest_version_comes_first(queue):
    queue.begin(job(0), job(0).spec.ranges[:1])
    assert [lease.job.spec.number for lease in (queue.take("a"), queue.take("a")) if lease] == [0, 1]


def test_blocks_of_a_dead_encoder_are_handed_out_again_and_counted(queue):
    queue.done("a", queue.take("a"))
    lost = queue.take("a")
    queue.release("a")
    assert queue.take("b") == lost
    assert (num_lacking(queue), queue.look([], []).num_again) == (7, 1)


def test_block_finished_by_an_encoder_thought_dead_is_not_encoded_again(queue):
    lease = queue.take("a")
    queue.release("a")
    queue.done("a", lease)
    assert num_lacking(queue) == 7
    assert lease not in take_all(queue, "b")


def test_overdue_block_goes_to_one_idle_encoder_and_either_may_finish_it(queue, monkeypatch):
    monkeypatch.setattr(range_queue, "_STEAL_AFTER_S", 0.01)
    slow = queue.take("slow")
    for lease in take_all(queue, "fast"):
        queue.done("fast", lease)
    time.sleep(0.05)
    assert queue.look(["slow", "fast"], [1]).wanted == ["fast"]
    assert queue.take("fast") == slow
    assert queue.take("third") is None, "two holders are enough"
    queue.done("fast", slow)
    queue.done("slow", slow)
    assert (num_lacking(queue), queue.look([], []).num_again) == (0, 1)


def test_report_on_a_version_that_began_anew_is_ignored(queue):
    lease = queue.take("a")
    queue.begin(job(weights_hash="other"), job().spec.ranges)
    queue.done("a", lease)
    assert num_lacking(queue) == 8


def test_queue_says_which_versions_it_does_not_know(queue):
    queue.end(1)
    assert queue.look(["a"], [1]).num_lacking == {}
    assert queue.take("a") is None
