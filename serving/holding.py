"""What a request holds while the engine works on it."""

from __future__ import annotations

from collections.abc import Callable

from serving.driver import EngineOutput, OutputStream
from serving.fair_queue import OUTPUT_WEIGHT, FairQueue, Ticket


class Holding:
    """A place in the queue, and an adapter where one is used.

    Both are given back when the engine lets go of the request, and what it writes is charged as it comes: who
    reads slowly, or not at all, keeps nobody out.

    Args:
        queue: Gave the place.
        ticket: The place.
        release: Gives back the adapter; called once.
    """

    def __init__(self, queue: FairQueue, ticket: Ticket, release: Callable[[], None]) -> None:
        self._queue = queue
        self._ticket = ticket
        self._release = release
        self._has_begun = False
        self._has_ended = False

    def watch(self, stream: OutputStream) -> None:
        """Follow what the engine writes until it lets go of the request."""
        stream.on_piece = self._charge
        stream.on_end = self.end

    def _charge(self, output: EngineOutput) -> None:
        if self._has_ended:
            return
        if output.token_ids and not self._has_begun:
            self._has_begun = True
            self._queue.charge(self._ticket, -output.num_cached_tokens)
        self._queue.charge(self._ticket, OUTPUT_WEIGHT * len(output.token_ids))

    def end(self) -> None:
        """Give everything back; a second call does nothing."""
        if not self._has_ended:
            self._has_ended = True
            # In this order: nobody gets the slot of a request whose adapter is still counted as used.
            self._release()
            self._queue.leave(self._ticket)
