"""Whose request enters the engine next, so that no tenant's flood makes the others wait.

Requests wait here and not in the engine, which takes them as they came. Each tenant has a counter of the
service it got, in tokens; of those waiting the one with the least is next (Virtual Token Counter, Sheng et
al., "Fairness in Serving Large Language Models", OSDI 2024). No slot stays empty while anyone waits, and two
tenants that both wait get shares that differ by a bounded number of tokens, whatever they send.

What differs from the paper: a tenant that has nothing in the engine enters at once, into a few slots kept for
that; prompt tokens whose KV was in the cache are given back once that is known; tenants may have weights;
priorities come before counters; and a tenant's own requests are ordered by when the run they belong to began,
so that a run half done is finished before the next one is begun.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

OUTPUT_WEIGHT = 2.0
"""What a generated token counts beside a prompt token."""
SHARE_OF_ROOM = 4.0
"""A tenant may wait with this many requests per place still free: alone it fills four fifths of the queue,
and whoever comes then finds room (Choudhury and Hahne's dynamic thresholds)."""
MAX_IDLE_TENANTS = 10_000
"""Tenants remembered; beyond it those without requests whose counter says nothing any more are forgotten."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place; from `FairQueue.admit`."""

    tenant: str
    """Whose it is."""
    order: tuple[int, float, int]
    """Priority, when its run began, and number: the least is the tenant's next."""
    loop: asyncio.AbstractEventLoop
    """Where it is waited for."""
    holds_slot: bool = False
    """Whether the engine works on it."""
    prompt_tokens: int = 0
    """What is charged when its turn comes."""
    turn: asyncio.Future[None] | None = None
    """Done once it may enter, or has left; None before it waits."""

    @property
    def is_waiting(self) -> bool:
        """Return whether its turn is to come, and somebody is there to take it."""
        return self.turn is not None and not self.turn.done() and not self.loop.is_closed()

    def __lt__(self, other: Ticket) -> bool:
        return self.order < other.order


@dataclass(slots=True)
class _Tenant:
    served: float = 0.0
    """The virtual token counter: tokens served by weight, and what was lifted while it had nothing to ask."""
    waiting: list[Ticket] = field(default_factory=list)
    """Heap of those whose turn has not come; may hold some that left."""
    num_waiting: int = 0
    """Admitted and without a slot, whether on the heap or still being encoded."""
    num_running: int = 0
    """With a slot."""
    last_turn: int = -1
    """Number of the turn it had last; of equally served tenants the one whose turn is longest ago is next."""

    def first(self) -> Ticket | None:
        """Return the ticket that is next, dropping those that left."""
        while self.waiting and not self.waiting[0].is_waiting:
            heapq.heappop(self.waiting)
        return self.waiting[0] if self.waiting else None


class FairQueue:
    """Gives the engine's slots to waiting requests; used from one thread at a time.

    Args:
        num_slots: Requests that the engine works on at once.
        max_waiting: Requests that may wait, all tenants together.
        weights: Share of each tenant beside the others', > 0; 1 for those not named.
        num_reserved: Slots beyond those, for tenants that have none.
        fair: False sends every request to the engine at once, to wait there, and keeps no room for others.
    """

    def __init__(
        self,
        num_slots: int,
        max_waiting: int,
        weights: Mapping[str, float] | None = None,
        *,
        num_reserved: int = 0,
        fair: bool = True,
    ) -> None:
        self._num_slots = num_slots
        self._num_reserved = num_reserved
        self._fair = fair
        self._max_waiting = max_waiting
        self._weights = dict(weights or {})
        self._tenants: dict[str, _Tenant] = {}
        self._queued: set[str] = set()
        """Tenants with something on their heap."""
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._tickets: set[Ticket] = set()
        self._num_running = 0
        self._last_served = 0.0
        self._closed: Exception | None = None
        self._is_paused = False
        self._emptied = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        """Return how many requests have no slot yet."""
        return len(self._tickets) - self._num_running

    @property
    def gap_tokens(self) -> float:
        """Return by how many tokens of service the tenants that wait now are apart; 0 for fewer than two."""
        served = [state.served for _, state in self._next_of_each()]
        return max(served) - min(served) if served else 0.0

    @property
    def num_beyond_slots(self) -> int:
        """Return how many requests are more than the engine works on at once; negative for free slots."""
        return len(self._tickets) - self._num_slots

    def refusal(self, tenant: str) -> str | None:
        """Return why one more request of a tenant cannot be taken, or None where it can."""
        self._drop_abandoned()
        num_queued = self.num_beyond_slots
        if num_queued < 0:
            return None
        free = self._max_waiting - num_queued
        if free <= 0:
            return f"{num_queued} requests wait already, the limit is {self._max_waiting}"
        known = self._tenants.get(tenant)
        mine = known.num_waiting if known is not None and self._fair else 0
        if mine >= SHARE_OF_ROOM * free:
            return (
                f"{mine} requests of tenant {tenant!r} wait already, and the last {free} places of "
                f"{self._max_waiting} are kept for others"
            )
        return None

    def admit(self, tenant: str, priority: int = 0, run_began_s: float | None = None) -> Ticket:
        """Return a place in the queue; it counts as waiting until its turn comes, and ends with `leave`.

        Args:
            tenant: Whose request it is.
            priority: Lower goes first, whoever asks.
            run_began_s: When the run that asks began, seconds since 1970; None for now.
        """
        number = next(self._numbers)
        began_s = time.time() if run_began_s is None else run_began_s
        state = self._tenants.setdefault(tenant, _Tenant())
        state.num_waiting += 1
        ticket = Ticket(tenant, (priority, began_s, number), asyncio.get_running_loop())
        self._tickets.add(ticket)
        return ticket

    async def enter(self, ticket: Ticket, prompt_tokens: int) -> None:
        """Wait for a slot of the engine, and take it.

        Args:
            ticket: From `admit`.
            prompt_tokens: Charged when its turn comes; `charge` gives back what was cached.

        Raises:
            Exception: What `close` was given.
        """
        if self._closed is not None:
            raise self._closed
        state = self._tenants[ticket.tenant]
        if state.first() is None:
            # Who comes back has not saved up service: it starts level with the least served that waits.
            state.served = max(state.served, self._floor())
        ticket.prompt_tokens = prompt_tokens
        ticket.turn = ticket.loop.create_future()
        heapq.heappush(state.waiting, ticket)
        self._queued.add(ticket.tenant)
        self._give_slots()
        await ticket.turn

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Count service to a ticket's tenant; negative gives back."""
        self._tenants[ticket.tenant].served += tokens / self._weights.get(ticket.tenant, 1.0)

    def leave(self, ticket: Ticket) -> None:
        """End a ticket, wherever it stands; its slot goes to the next. A second call does nothing."""
        if ticket not in self._tickets:
            return
        if ticket.turn is not None and not ticket.loop.is_closed():
            ticket.turn.cancel()
        self._end(ticket)
        self._give_slots()
        if len(self._tenants) > MAX_IDLE_TENANTS:
            self._forget_idle()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Give no slots, and begin once nobody has one; who waits goes on after. One at a time."""
        self._is_paused = True
        try:
            while self._num_running:
                self._emptied.clear()
                await self._emptied.wait()
            yield
        finally:
            self._is_paused = False
            self._give_slots()

    def close(self, error: Exception) -> None:
        """Fail all that wait, and whoever would."""
        self._closed = error
        for state in self._tenants.values():
            for ticket in state.waiting:
                if ticket.is_waiting and ticket.turn is not None:
                    ticket.turn.set_exception(error)

    def _give_slots(self) -> None:
        while waiting := self._may_enter():
            ticket, state = min(
                waiting, key=lambda one: (one[0].order[0], one[1].served, one[1].last_turn, one[0].order)
            )
            heapq.heappop(state.waiting)
            assert ticket.turn is not None
            ticket.holds_slot = True
            ticket.turn.set_result(None)
            self._num_running += 1
            state.num_running += 1
            state.num_waiting -= 1
            state.last_turn = next(self._turns)
            self._last_served = state.served
            self.charge(ticket, ticket.prompt_tokens)

    def _may_enter(self) -> list[tuple[Ticket, _Tenant]]:
        """Return the ticket that is next of each tenant for which there is a slot."""
        self._drop_abandoned()
        if self._is_paused:
            return []
        waiting = self._next_of_each()
        if not self._fair or self._num_running < self._num_slots:
            return waiting
        if self._num_running < self._num_slots + self._num_reserved:
            return [(ticket, state) for ticket, state in waiting if not state.num_running]
        return []

    def _drop_abandoned(self) -> None:
        """End tickets whose event loop ended without a word; the engine drops their requests by itself."""
        if len(self._tickets) >= self._num_slots:
            for ticket in [ticket for ticket in self._tickets if ticket.loop.is_closed()]:
                self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
        state = self._tenants[ticket.tenant]
        if ticket.holds_slot:
            self._num_running -= 1
            state.num_running -= 1
            if not self._num_running:
                self._emptied.set()
        else:
            state.num_waiting -= 1

    def _next_of_each(self) -> list[tuple[Ticket, _Tenant]]:
        """Return the ticket that is next of each tenant that waits."""
        found = []
        for name in list(self._queued):
            state = self._tenants[name]
            if (ticket := state.first()) is not None:
                found.append((ticket, state))
            else:
                self._queued.discard(name)
        return found

    def _floor(self) -> float:
        served = [state.served for _, state in self._next_of_each()]
        return min(served, default=self._last_served)

    def _forget_idle(self) -> None:
        floor = self._floor()
        self._tenants = {
            name: state
            for name, state in self._tenants.items()
            if state.num_running or state.num_waiting or state.served > floor
        }
