"""A copy of a shard that answers, waits, fails or lags as a test says."""

from __future__ import annotations

import asyncio
from typing import Any

from retrieval.errors import IndexUnavailable, ShardRestarting
from retrieval.sharding.shard_copy import Answered, Call


class ScriptedCopy:
    """Answers every call with its slot, after `delay_s`, unless it is down."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.calls: list[Call] = []
        self.cancelled = 0
        self.delay_s = 0.0
        self.seq = 0
        self.restarting = False
        self.gone = False
        self.values: dict[str, Any] = {}

    async def answer(self, call: Call, timeout_s: float) -> Answered:
        self.calls.append(call)
        if self.gone:
            raise IndexUnavailable(f"copy {self.slot} is gone")
        if self.restarting:
            raise ShardRestarting(f"copy {self.slot} is coming back")
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.delay_s)
        except TimeoutError as error:
            raise IndexUnavailable(f"copy {self.slot} did not answer within {timeout_s:g} s") from error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.seq = max(self.seq, call.min_seq)
        value = self.values.get(call.method, self.slot)
        return Answered(value(call) if callable(value) else value, self.seq)
