"""Reads what an engine writes, and ends it in the engine once its deadline has passed."""

from __future__ import annotations

import asyncio

from serving.driver import Driver, EngineOutput, OutputStream
from serving.types import FinishReason

ABORT_GRACE_S = 2.0
"""Longest wait for the engine to hand over what it holds of a request past its deadline."""


class DeadlineReader:
    """Reads a stream to its end; at the deadline the engine stops, also where nobody is reading.

    Args:
        driver: The engine.
        stream: What it writes.
        deadline_at: Loop time of the deadline; None for none.
    """

    def __init__(self, driver: Driver, stream: OutputStream, deadline_at: float | None) -> None:
        self._driver = driver
        self._stream = stream
        self._expired = False
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._gives_up_at: float | None = None
        if deadline_at is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_at, self._expire)
            self._gives_up_at = deadline_at + ABORT_GRACE_S

    def _expire(self) -> None:
        self._expired = True
        self._driver.abort(self._stream.request_id)

    async def next(self) -> EngineOutput:
        """Return the next piece; past the deadline the last one, with what the engine still held."""
        try:
            async with asyncio.timeout_at(self._gives_up_at):
                output = await self._stream.next()
        except TimeoutError:  # the engine is stuck in a step: the caller is not to wait for it
            output = EngineOutput("", (), finish_reason="abort")
        self._ended = output.finish_reason is not None
        return output

    def finish_reason(self, output: EngineOutput) -> FinishReason:
        """Return why the generation ended, from its last piece."""
        if output.finish_reason != "abort":
            assert output.finish_reason in ("stop", "length")
            return output.finish_reason
        return "deadline" if self._expired else "cancelled"

    def close(self) -> None:
        """Have the engine stop, unless the last piece was read."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._ended:
            self._driver.abort(self._stream.request_id)
