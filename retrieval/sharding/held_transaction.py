"""A transaction of a store that stays open until somebody decides, or until its lease ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager


class _NotCommitted(Exception):
    """The transaction is to be undone."""


class HeldTransaction:
    """Keeps a transaction open in a thread of its own; every other write to the store waits meanwhile."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[object]], lease_s: float) -> None:
        """Prepare; `begin` opens it. Belongs to the running event loop.

        Args:
            transaction: Opens it; an error inside the block must undo it.
            lease_s: Longest time it stays open; then it is undone.
        """
        self.ended = asyncio.Event()
        """Set once the transaction has ended, either way."""
        self._transaction = transaction
        self._lease_s = lease_s
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._told = threading.Event()
        self._commit = False
        self._error: BaseException | None = None

    async def begin(self) -> None:
        """Open the transaction; raises what opening it raises."""
        threading.Thread(target=self._run, name="held-transaction", daemon=True).start()
        await self._begun

    async def end(self, *, commit: bool) -> None:
        """Commit or undo, and wait for it; nothing happens once it has ended."""
        self._commit = commit
        self._told.set()
        await self.ended.wait()
        if commit and self._error is not None:
            raise self._error

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._transaction():
                self._loop.call_soon_threadsafe(self._answer, None)
                if not (self._told.wait(self._lease_s) and self._commit):
                    raise _NotCommitted
        except _NotCommitted:
            pass
        except BaseException as raised:  # Handed to the task that waits in `begin` or `end`.
            error = raised
        self._error = error
        self._loop.call_soon_threadsafe(self._answer, error)
        self._loop.call_soon_threadsafe(self.ended.set)

    def _answer(self, error: BaseException | None) -> None:
        if self._begun.done():
            return
        if error is None:
            self._begun.set_result(None)
        else:
            self._begun.set_exception(error)
