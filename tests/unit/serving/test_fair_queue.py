"""Whose turn it is: tenants by service, priorities, runs, room for others; checked against a simulation."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import GeneratorUnavailable
from serving.fair_queue import MAX_IDLE_TENANTS, FairQueue, Ticket


class Client:
    """Requests of a test: who entered, in order."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.entered: list[str] = []
        self.holding: list[Ticket] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def ask(self, tenant: str, tokens: int = 10, *, name: str = "", **fields: object) -> Ticket:
        ticket = self.queue.admit(tenant, **fields)  # type: ignore[arg-type]

        async def wait() -> None:
            await self.queue.enter(ticket, tokens)
            self.entered.append(name or tenant)
            self.holding.append(ticket)

        task = asyncio.create_task(wait())
        self.tasks.add(task)
        await asyncio.sleep(0)
        return ticket

    async def next(self) -> str:
        """End the request that entered first, and return who enters then."""
        self.queue.leave(self.holding.pop(0))
        num_entered = len(self.entered)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(self.entered) == num_entered + 1
        return self.entered[-1]


async def test_slots_are_given_at_once_until_none_is_left() -> None:
    client = Client(FairQueue(2, 10))
    for tenant in "abc":
        await client.ask(tenant)
    await asyncio.sleep(0)
    assert (client.entered, client.queue.num_waiting) == (["a", "b"], 1)
    assert await client.next() == "c"
    assert client.queue.num_waiting == 0


async def test_a_flood_does_not_hold_up_whoever_comes_later() -> None:
    client = Client(FairQueue(1, 1000))
    for _ in range(50):
        await client.ask("flood")
    await client.ask("light")
    assert await client.next() == "light"


async def test_a_tenant_without_a_slot_enters_one_that_is_kept_for_it() -> None:
    client = Client(FairQueue(2, 1000, num_reserved=1))
    for _ in range(5):
        await client.ask("flood")
    assert client.entered == ["flood", "flood"]
    for _ in range(2):
        await client.ask("light")
    await asyncio.sleep(0)
    assert client.entered == ["flood", "flood", "light"]
    client.queue.leave(client.holding.pop(0))
    await asyncio.sleep(0)
    assert client.queue.num_waiting == 4, "two still run, and nobody is without a slot"
    await client.ask("other")
    await asyncio.sleep(0)
    assert client.entered[-1] == "other"


async def test_two_floods_get_turns_by_tokens_not_by_requests() -> None:
    client = Client(FairQueue(1, 1000))
    for _ in range(100):
        await client.ask("short", 10)
        await client.ask("long", 30)
    shares = Counter([await client.next() for _ in range(80)])
    assert abs(shares["short"] - 3 * shares["long"]) <= 6


async def test_weights_share_service() -> None:
    client = Client(FairQueue(1, 1000, {"paid": 4.0}))
    for _ in range(100):
        await client.ask("free")
        await client.ask("paid")
    shares = Counter([await client.next() for _ in range(50)])
    assert shares["paid"] == pytest.approx(40, abs=2)


async def test_generated_tokens_are_charged_and_cached_ones_given_back() -> None:
    client = Client(FairQueue(1, 1000))
    for tenant in ("hold", *"ab" * 5):
        await client.ask(tenant, 10)
    assert await client.next() == "a"
    client.queue.charge(client.holding[0], 25)
    assert [await client.next() for _ in range(4)] == ["b", "b", "b", "b"]  # to 40, past 35 of a
    client.queue.charge(client.holding[0], -10)
    assert await client.next() == "b"  # 30


async def test_a_tenant_that_was_away_has_not_saved_up_service() -> None:
    client = Client(FairQueue(1, 1000))
    await client.ask("away")
    for _ in range(40):
        await client.ask("busy")
    for _ in range(20):
        await client.next()
    for _ in range(20):
        await client.ask("away")
    shares = Counter([await client.next() for _ in range(10)])
    assert shares["away"] == pytest.approx(5, abs=1)


async def test_priority_comes_before_service() -> None:
    client = Client(FairQueue(1, 1000))
    await client.ask("a")
    await client.ask("new", priority=20)
    await client.ask("a", priority=10, name="grader")
    await client.ask("a", priority=0, name="person")
    assert [await client.next() for _ in range(3)] == ["person", "grader", "new"]


async def test_of_one_tenant_the_run_that_began_first_goes_first() -> None:
    client = Client(FairQueue(1, 1000))
    await client.ask("a")
    await client.ask("a", name="second run", run_began_s=200.0)
    await client.ask("a", name="no run")
    await client.ask("a", name="first run, second call", run_began_s=100.0)
    order = [await client.next() for _ in range(3)]
    assert order == ["first run, second call", "second run", "no run"]


async def test_one_that_leaves_while_waiting_is_passed_over() -> None:
    client = Client(FairQueue(1, 1000))
    await client.ask("a")
    gone = await client.ask("b")
    await client.ask("c")
    client.queue.leave(gone)
    assert client.queue.num_waiting == 1
    assert await client.next() == "c"


async def test_one_cancelled_as_its_turn_comes_gives_the_slot_on() -> None:
    client = Client(FairQueue(1, 1000))
    await client.ask("a")
    ticket = client.queue.admit("b")
    entering = asyncio.create_task(client.queue.enter(ticket, 1))
    await asyncio.sleep(0)
    await client.ask("c")
    client.queue.leave(client.holding.pop(0))
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert ticket.holds_slot
    client.queue.leave(ticket)
    await asyncio.sleep(0)
    assert client.entered == ["a", "c"]


async def test_a_full_queue_and_a_share_that_is_used_up_are_told_apart() -> None:
    queue = FairQueue(2, 10)
    taken = []
    while queue.refusal("flood") is None:
        taken.append(queue.admit("flood"))
        assert len(taken) < 100
        if len(taken) <= 2:
            await queue.enter(taken[-1], 1)
    assert len(taken) == 2 + 8
    refusal = "8 requests of tenant 'flood' wait already, and the last 2 places of 10 are kept for others"
    assert queue.refusal("flood") == refusal
    others = 0
    while queue.refusal(f"other {others}") is None:
        queue.admit(f"other {others}")
        others += 1
    assert others == 2
    assert queue.refusal("late") == "10 requests wait already, the limit is 10"


async def test_one_queued_request_is_enough_for_one_tenant() -> None:
    queue = FairQueue(1, 1)
    for _ in range(2):
        assert queue.refusal("only") is None
        queue.admit("only")
    assert queue.refusal("only") == "1 requests wait already, the limit is 1"


async def test_without_fairness_all_enter_as_they_come() -> None:
    client = Client(FairQueue(1, 10, fair=False))
    for tenant in "aab":
        await client.ask(tenant)
    await asyncio.sleep(0)
    assert client.entered == ["a", "a", "b"]
    for _ in range(8):
        assert client.queue.refusal("a") is None
        await client.ask("a")
    assert client.queue.refusal("b") == "10 requests wait already, the limit is 10"


async def test_a_pause_begins_when_all_have_ended_and_holds_back_the_others() -> None:
    client = Client(FairQueue(2, 10, num_reserved=1))
    for tenant in "abb":
        await client.ask(tenant)
    begun, end = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        async with client.queue.paused():
            begun.set()
            await end.wait()

    pausing = asyncio.create_task(pause())
    await client.ask("late")
    for _ in range(2):
        assert not begun.is_set()
        client.queue.leave(client.holding.pop(0))
        await asyncio.sleep(0)
    await asyncio.wait_for(begun.wait(), 5)
    assert client.entered == ["a", "b"]
    await client.ask("c")
    assert client.queue.num_waiting == 3
    end.set()
    await pausing
    await asyncio.sleep(0)
    assert sorted(client.entered[2:]) == ["b", "c", "late"]


async def test_a_pause_that_is_given_up_lets_the_others_in() -> None:
    client = Client(FairQueue(1, 10))
    await client.ask("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), client.queue.paused():
            raise AssertionError("one runs")
    await client.ask("b")
    assert await client.next() == "b"


async def test_closing_fails_those_that_wait_and_those_that_come() -> None:
    queue = FairQueue(1, 10)
    await queue.enter(queue.admit("a"), 1)
    waiting = asyncio.create_task(queue.enter(queue.admit("b"), 1))
    await asyncio.sleep(0)
    queue.close(GeneratorUnavailable("stopping"))
    for entering in (waiting, queue.enter(queue.admit("c"), 1)):
        with pytest.raises(GeneratorUnavailable, match="stopping"):
            await entering


async def test_tenants_that_went_are_forgotten() -> None:
    queue = FairQueue(4, 10)
    for number in range(MAX_IDLE_TENANTS + 50):
        ticket = queue.admit(str(number))
        await queue.enter(ticket, 0)
        queue.leave(ticket)
    assert len(queue._tenants) <= MAX_IDLE_TENANTS


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), num_slots=st.integers(1, 6))
def test_service_of_two_that_always_wait_stays_together(seed: int, num_slots: int) -> None:
    """The paper's bound: 2 max(largest prompt, tokens that the slots can hold)."""

    async def simulate() -> None:
        rng = random.Random(seed)
        client = Client(FairQueue(num_slots, 10_000))
        served = Counter[str]()
        for _ in range(60):
            for tenant in ("a", "b"):
                await client.ask(tenant, rng.randint(1, 50))
        while min(Counter(client.entered)[tenant] for tenant in "ab") < 60 - num_slots:
            await asyncio.sleep(0)
            ticket = client.holding.pop(rng.randrange(len(client.holding)))
            written = rng.randint(0, 20)
            client.queue.charge(ticket, 2.0 * written)
            served[ticket.tenant] += ticket.prompt_tokens + 2 * written
            client.queue.leave(ticket)
            if client.queue.num_waiting and all(client.queue._tenants[name].first() for name in "ab"):
                assert abs(served["a"] - served["b"]) <= 2 * num_slots * (50 + 2 * 20)

    asyncio.run(simulate())
