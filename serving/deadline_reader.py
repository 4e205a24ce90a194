"""Reads what an engine writes until a deadline."""

from __future__ import annotations

import asyncio

from serving.driver import Driver, EngineOutput, OutputStream
from serving.types import FinishReason

ABORT_GRACE_S = 2.0
"""Longest wait for the engine to hand over what it holds of a request past its deadline."""


class DeadlineReader:
    """Reads a stream until it ends or its deadline passes, and then ends it in the engine.

    Args:
        driver: The engine.
        stream: What it writes.
        deadline_at: Loop time of the deadline; None for none.
    """

    def __init__(self, driver: Driver, stream: OutputStream, deadline_at: float | None) -> None:
        self._driver = driver
        self._stream = stream
        self._deadline_at = deadline_at
        self._expired = False

    async def next(self) -> EngineOutput:
        """Return the next piece; past the deadline the last one, with what the engine still held."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline_at):
                    return await self._stream.next()
            except TimeoutError:
                if self._expired:  # the engine is stuck in a step: the caller is not to wait for it
                    return EngineOutput("", (), finish_reason="abort")
                self._expired = True
                self._driver.abort(self._stream.request_id)
                self._deadline_at = asyncio.get_running_loop().time() + ABORT_GRACE_S

    def finish_reason(self, output: EngineOutput) -> FinishReason:
        """Return why the generation ended, from its last piece."""
        if output.finish_reason != "abort":
            assert output.finish_reason in ("stop", "length")
            return output.finish_reason
        return "deadline" if self._expired else "cancelled"
