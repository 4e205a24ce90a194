"""The copies of one shard as one: reads by any copy, writes by the primary, and nobody notices a lost one.

A read goes to the copies in turn. One that fails is asked of the next copy at once; one slower than the 95th
percentile is asked a second time elsewhere, and the first answer counts. Copies follow the primary by its
log. Every answer tells a log position; a read never goes back behind the newest position seen after a write,
so a document deleted, or seen ready, through this object stays so whichever copy answers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, ShardRestarting, UnknownDocument, UnknownVersion
from retrieval.reader import Candidates, TermStats
from retrieval.sharding.latency import Latency
from retrieval.sharding.shard_copy import Answered, Call, ShardCopy
from retrieval.types import Passage, SearchRequest, SearchResult

if TYPE_CHECKING:
    import numpy as np

_RETRY_S = 0.1
_MARGIN_S = 0.25
_REST_S = 1.0
"""How long a copy that failed is asked last."""


class ReplicaSet:
    """One shard: a `ShardReader` over its copies, and the way to its primary; belongs to one event loop."""

    def __init__(
        self, name: str, copies: Sequence[ShardCopy], config: RetrievalConfig, primary: int = 0
    ) -> None:
        """Join copies.

        Args:
            name: The shard's name.
            copies: At least one; the primary's slot is among theirs.
            config: Patience and hedging.
            primary: Slot of the copy that takes writes.
        """
        self._name = name
        self._copies = {copy.slot: copy for copy in copies}
        self._primary = primary
        self._config = config
        self._floor = 0
        self._failed_at: dict[int, float] = {}
        self._turn = itertools.count()
        self._latency: dict[str, Latency] = defaultdict(lambda: Latency(config.min_hedge_ms / 1000))
        self.num_hedged = 0
        """Reads that were asked a second time."""

    @property
    def name(self) -> str:
        """Return the shard's name."""
        return self._name

    @property
    def primary(self) -> int:
        """Return the slot of the copy that takes writes."""
        return self._primary

    @property
    def slots(self) -> tuple[int, ...]:
        """Return the slots of all copies."""
        return tuple(self._copies)

    @property
    def floor(self) -> int:
        """Return the newest log position seen after a write; reads reflect it."""
        return self._floor

    def promote(self, slot: int) -> None:
        """Send writes to another copy from now on."""
        self._primary = slot

    async def term_stats(
        self, version: str, terms: Sequence[str], deadline_s: float | None = None
    ) -> TermStats:
        """Return this shard's share of the collection's statistics."""
        return await self._read(Call("term_stats", (version, list(terms))), deadline_s)

    async def candidates(
        self,
        version: str,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None,
        deadline_s: float | None = None,
    ) -> list[Candidates]:
        """Return both legs' candidates per request; see `ShardReader.candidates`."""
        call = Call(
            "candidates", (version, list(requests), vectors_QD, stats), min_seq=self._wanted(requests)
        )
        return await self._read(call, deadline_s)

    async def vectors(self, version: str, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[dim] by chunk id, of the chunks this shard holds."""
        return await self._read_all("vectors", version, chunk_ids)

    async def token_codes(self, version: str, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        """Return compressed token vectors by chunk id, of the chunks this shard holds."""
        return await self._read_all("token_codes", version, chunk_ids)

    async def passages(
        self, version: str | None, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        """Return passages by chunk id, of the tenant's chunks here; see `ShardReader.passages`."""
        return await self._read_all("passages", version, chunk_ids, tenant, before, after)

    async def neighbours(
        self, version: str, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        """Return the passages around a chunk in its document, itself included, in order."""
        return await self._read(Call("neighbours", (version, chunk_id, before, after, tenant)))

    async def search(
        self, requests: Sequence[SearchRequest], deadline_s: float | None = None
    ) -> list[SearchResult]:
        """Return whole results, made inside one copy; right where this shard is the whole index."""
        # The copy keeps the deadline itself; the call may take a little longer.
        patience_s = None if deadline_s is None else deadline_s + _MARGIN_S
        call = Call("search", (list(requests),), min_seq=self._wanted(requests))
        return await self._read(call, patience_s)

    async def read(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what a method of the primary returns, or of another copy where that does not answer."""
        call = Call(method, args, kwargs)
        errors: list[IndexUnavailable] = []
        for slot in sorted(self._copies, key=lambda slot: slot != self._primary):
            try:
                return (await self._copies[slot].answer(call, self._config.call_timeout_s)).value
            except IndexUnavailable as error:
                errors.append(error)
        raise errors[0]

    async def delete(self, document_id: str, tenant: str) -> None:
        """Remove a document; an attempt that died with the primary may have removed it already."""
        call = Call("delete", (document_id,), {"tenant": tenant})
        try:
            answered = await self._copies[self._primary].answer(call, self._config.call_timeout_s)
            self._floor = max(self._floor, answered.seq)
        except ShardRestarting:
            with suppress(UnknownDocument):
                await self.write("delete", document_id, tenant=tenant)
            await self.write("seq")  # Reads must not go back behind the attempt that died.

    async def write(self, method: str, *args: Any, patience_s: float | None = None, **kwargs: Any) -> Any:
        """Return what a method of the primary returns; waits out its restart.

        Args:
            method: Name of a method of `ShardNode`; running it twice must give the same result.
            *args: Its arguments.
            patience_s: Longest wait; None for `call_timeout_s`.
            **kwargs: Its keyword arguments.

        Raises:
            IndexUnavailable: The primary is gone or did not answer in time.
            RetrievalError: Whatever the method raises.
        """
        answered = await self.call_slot(self._primary, Call(method, args, kwargs), patience_s)
        self._floor = max(self._floor, answered.seq)
        return answered.value

    async def call_slot(self, slot: int, call: Call, timeout_s: float | None = None) -> Answered:
        """Return what one copy answers; waits out its restart."""
        copy = self._copies[slot]
        end = time.monotonic() + (self._config.call_timeout_s if timeout_s is None else timeout_s)
        while True:
            left_s = end - time.monotonic()
            try:
                answered = await copy.answer(call, max(left_s, 0.0))
            except ShardRestarting:
                if end - time.monotonic() <= _RETRY_S:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return answered

    def _wanted(self, requests: Sequence[SearchRequest]) -> int:
        return max((request.min_seq.get(self._name, 0) for request in requests if request.min_seq), default=0)

    async def _read_all(
        self, method: str, version: str | None, chunk_ids: Sequence[str], *rest: Any
    ) -> dict[str, Any]:
        """Return what is held of the chunks; what a copy behind the others lacks is asked of the primary."""
        call = Call(method, (version, list(chunk_ids), *rest), min_seq=self._floor)
        slot, found = await self._patiently(call, None)
        missing = [chunk_id for chunk_id in chunk_ids if chunk_id not in found]
        if missing and slot != self._primary and not self._rests(self._primary):
            # Without the primary, the copy that answered is all there is.
            with suppress(IndexUnavailable):
                call = Call(method, (version, missing, *rest))
                found |= (await self._copies[self._primary].answer(call, self._config.call_timeout_s)).value
        return found

    async def _read(self, call: Call, deadline_s: float | None = None) -> Any:
        return (await self._patiently(replace(call, min_seq=max(call.min_seq, self._floor)), deadline_s))[1]

    async def _patiently(self, call: Call, deadline_s: float | None) -> tuple[int, Any]:
        """Return (slot, answer) of some copy, waiting out restarts within the deadline."""
        end = time.monotonic() + (self._config.call_timeout_s if deadline_s is None else deadline_s)
        while True:
            try:
                return await self._first_answer(call, deque(self._order()), end)
            except ShardRestarting:
                if end - time.monotonic() <= _RETRY_S:
                    raise
                await asyncio.sleep(_RETRY_S)

    def _rests(self, slot: int) -> bool:
        return time.monotonic() - self._failed_at.get(slot, -_REST_S) < _REST_S

    def _order(self) -> list[int]:
        """Return the slots to ask: each in turn, those that failed a moment ago last."""
        slots = list(self._copies)
        start = next(self._turn) % len(slots)
        return sorted(slots[start:] + slots[:start], key=self._rests)

    async def _first_answer(self, call: Call, waiting: deque[int], end: float) -> tuple[int, Any]:
        """Return (slot, answer) of the copy that answers first; the calls of the others are cancelled."""
        if len(waiting) == 1:
            slot = waiting[0]
            answered = await self._copies[slot].answer(call, max(end - time.monotonic(), 0.0))
            return slot, answered.value
        latency = self._latency[call.method]
        hedge_s: float | None = latency.hedge_after_s()
        started: dict[asyncio.Task[Answered], int] = {}
        errors: list[IndexUnavailable] = []
        began = time.monotonic()
        try:
            while started or waiting:
                if not started:  # The first, or the next after one that failed.
                    self._start(call, waiting, end, started)
                may_hedge = waiting and len(started) == 1
                done, _ = await asyncio.wait(
                    started, timeout=hedge_s if may_hedge else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    hedge_s = None
                    if latency.take_hedge():
                        self.num_hedged += 1
                        self._start(call, waiting, end, started)
                for task in done:
                    slot = started.pop(task)
                    try:
                        answered = task.result()
                    except IndexUnavailable as error:
                        self._failed_at[slot] = time.monotonic()
                        errors.append(error)
                        continue
                    except UnknownVersion:
                        # A replica may not have heard of it yet; the primary knows.
                        if slot == self._primary or not (waiting or started):
                            raise
                        continue
                    latency.add(time.monotonic() - began)
                    return slot, answered.value
        finally:
            for task in started:
                task.cancel()
        # While one copy is coming back, waiting may help.
        raise next((error for error in errors if isinstance(error, ShardRestarting)), errors[-1])

    def _start(
        self, call: Call, waiting: deque[int], end: float, started: dict[asyncio.Task[Answered], int]
    ) -> None:
        slot = waiting.popleft()
        left_s = max(end - time.monotonic(), 0.0)
        task = asyncio.ensure_future(self._copies[slot].answer(call, left_s))
        task.add_done_callback(_retrieve)
        started[task] = slot


def _retrieve(task: asyncio.Task[Answered]) -> None:
    """Take note of the error of a call whose answer nobody waits for any more."""
    if not task.cancelled():
        task.exception()
