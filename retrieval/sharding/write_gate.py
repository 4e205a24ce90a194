"""Holding back the writes of a shard for the moment in which its documents move or its version changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from retrieval.errors import IndexUnavailable, ShardMoved


class WriteGate:
    """Lets writes through until it is shut; belongs to one event loop.

    Whoever shuts it holds a lease: should they die, writes go on when it ends.
    """

    def __init__(self) -> None:
        """Start open."""
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._num_writing = 0
        self._moved = False
        self._lease: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Hold while writing; waits while the gate is shut.

        Raises:
            ShardMoved: The documents live elsewhere now.
        """
        while not self._open.is_set():  # It may be shut again before a writer that waited has its turn.
            await self._open.wait()
        if self._moved:
            raise ShardMoved("the documents of this shard have moved; look up where they are and try again")
        self._num_writing += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_writing -= 1
            if not self._num_writing:
                self._idle.set()

    async def shut(self, lease_s: float) -> None:
        """Hold back new writes and wait for those under way; it opens again by itself after `lease_s`."""
        self._open.clear()
        if self._lease is not None:
            self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(lease_s, self.open)
        await self._idle.wait()

    def open(self) -> None:
        """Let writes through again."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        self._open.set()

    def move(self) -> None:
        """Refuse every write from now on; those that wait are told to go elsewhere.

        Raises:
            IndexUnavailable: The gate is open: writes have passed.
        """
        if self._open.is_set():
            raise IndexUnavailable("the lease ended before the move, so writes have passed; try again")
        self._moved = True
        self.open()

    def stay(self) -> None:
        """Let writes through again after a move that was given up."""
        self._moved = False
        self.open()
