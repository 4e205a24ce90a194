"""Concurrent callers share calls, each gets its own answers, and no queue grows without bound."""

from __future__ import annotations

import asyncio

import pytest

from retrieval.errors import IndexOverloaded, IndexUnavailable, InvalidSearch
from retrieval.sharding.batcher import MicroBatcher


class Doubler:
    """Doubles numbers; refuses batches with a 1313."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.gate.wait()
        if self.down:
            raise IndexUnavailable("down")
        if 1313 in items:
            raise InvalidSearch("1313")
        return [item * 2 for item in items]


def batcher(run: Doubler, **changes: int) -> MicroBatcher[int, int]:
    settings = {"max_batch": 8, "max_queued": 100, "max_in_flight": 2, **changes}
    return MicroBatcher(run, **settings)


async def test_every_caller_gets_its_own_answers() -> None:
    run = Doubler()
    batch = batcher(run)
    answers = await asyncio.gather(*(batch.submit([n, n + 1]) for n in range(50)))
    assert answers == [[2 * n, 2 * n + 2] for n in range(50)]
    assert len(run.batches) < 50


async def test_lone_caller_goes_alone_and_large_lists_are_not_cut() -> None:
    run = Doubler()
    batch = batcher(run)
    assert await batch.submit([1]) == [2]
    assert await batch.submit(list(range(30))) == [2 * n for n in range(30)]
    assert [len(items) for items in run.batches] == [1, 30]


async def test_busy_batcher_gathers_up_to_the_batch_limit() -> None:
    run = Doubler()
    run.gate.clear()
    batch = batcher(run)
    tasks = [asyncio.create_task(batch.submit([n])) for n in range(40)]
    await asyncio.sleep(0.05)
    assert len(run.batches) == 2  # max_in_flight
    assert batch.num_queued == 40 - sum(map(len, run.batches))
    run.gate.set()
    await asyncio.gather(*tasks)
    assert max(map(len, run.batches)) == 8
    assert sorted(n for items in run.batches for n in items) == list(range(40))


async def test_full_queue_refuses_with_a_retry_hint() -> None:
    run = Doubler()
    run.gate.clear()
    batch = batcher(run, max_batch=1, max_queued=3, max_in_flight=1)
    tasks = []
    for n in range(4):
        tasks.append(asyncio.create_task(batch.submit([n])))
        await asyncio.sleep(0.02)
    with pytest.raises(IndexOverloaded, match="max_queued_searches=3") as refused:
        await batch.submit([9])
    assert 0 < refused.value.retry_after_s <= 30
    run.gate.set()
    assert await asyncio.gather(*tasks) == [[0], [2], [4], [6]]


async def test_one_callers_mistake_is_not_the_others() -> None:
    run = Doubler()
    batch = batcher(run)
    answers = await asyncio.gather(*(batch.submit([n]) for n in (1, 1313, 2)), return_exceptions=True)
    assert answers[0] == [2]
    assert isinstance(answers[1], InvalidSearch)
    assert answers[2] == [4]


async def test_outage_reaches_every_caller() -> None:
    run = Doubler()
    run.down = True
    answers = await asyncio.gather(*(batcher(run).submit([n]) for n in range(3)), return_exceptions=True)
    assert all(isinstance(answer, IndexUnavailable) for answer in answers)


async def test_waiting_out_the_deadline_in_the_queue_is_overload() -> None:
    run = Doubler()
    run.gate.clear()
    batch = batcher(run, max_in_flight=1, max_batch=1)
    first = asyncio.create_task(batch.submit([1]))
    await asyncio.sleep(0.01)
    late = asyncio.create_task(batch.submit([2], deadline_s=0.01))
    await asyncio.sleep(0.03)
    run.gate.set()
    assert await first == [2]
    with pytest.raises(IndexOverloaded, match="deadline"):
        await late
    assert run.batches == [[1]]


async def test_cancelled_caller_is_left_out() -> None:
    run = Doubler()
    run.gate.clear()
    batch = batcher(run, max_in_flight=1, max_batch=1)
    first = asyncio.create_task(batch.submit([1]))
    await asyncio.sleep(0.01)
    leaving = asyncio.create_task(batch.submit([2]))
    await asyncio.sleep(0.01)
    leaving.cancel()
    run.gate.set()
    await first
    assert await batch.submit([3]) == [6]
    assert [2] not in run.batches


async def test_aclose_ends_waiting_callers() -> None:
    run = Doubler()
    run.gate.clear()
    batch = batcher(run, max_in_flight=1, max_batch=1)
    tasks = [asyncio.create_task(batch.submit([n])) for n in range(3)]
    await asyncio.sleep(0.01)
    await batch.aclose()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(item, asyncio.CancelledError) for item in ended)
