"""The end of a platform's service: no new work, while what is under way may end."""

from __future__ import annotations

import asyncio

from graft.errors import ShuttingDown

RETRY_AFTER_S = 30.0
"""What refused callers are told; a platform that is started again answers after about that."""


class Drain:
    """Counts work under way, each piece inside one `with`, and admits none once the platform is ending."""

    def __init__(self) -> None:
        self.num_under_way = 0
        """Pieces of work that have begun and not ended."""
        self.has_begun = False
        """Whether new work is refused."""
        self._ended = asyncio.Event()

    def __enter__(self) -> None:
        """Begin a piece of work.

        Raises:
            ShuttingDown: The platform is ending.
        """
        if self.has_begun:
            raise ShuttingDown(
                f"the platform is shutting down and takes no new requests; retry in {RETRY_AFTER_S:.0f} s, "
                "or ask another one",
                RETRY_AFTER_S,
            )
        self.num_under_way += 1

    def __exit__(self, *_: object) -> None:
        self.num_under_way -= 1
        if not self.num_under_way:
            self._ended.set()

    async def run(self, limit_s: float, at_once: asyncio.Event) -> int:
        """Refuse new work and wait for what is under way; returns how much of it is left.

        Args:
            limit_s: Longest wait.
            at_once: Ends the wait when it is set.
        """
        self.has_begun = True
        self._ended.clear()
        if self.num_under_way:
            waits = {asyncio.create_task(event.wait()) for event in (self._ended, at_once)}
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return self.num_under_way
