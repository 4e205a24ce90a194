"""A replica's way of keeping up with its primary: it pulls the log, batch by batch, and applies each once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from retrieval.errors import IndexUnavailable, RetrievalUnavailable, ShardRestarting
from retrieval.sharding.shard_copy import Changes
from retrieval.truth.oplog import Batch
from retrieval.truth.store import Store

_log = logging.getLogger(__name__)

BATCH_OPS = 256
_LONG_POLL_S = 5.0
"""How long the primary may hold a pull until there is something new."""
_RETRY_S = 0.2
_POLL_S = 0.01

Pull = Callable[[int, str, float], Awaitable[Changes]]
"""Asks the primary: log position here, its mark, seconds it may wait for something new."""


class Follower:
    """Brings one replica's store to its primary's log position; belongs to one event loop."""

    def __init__(
        self, store: Store, pull: Pull, on_versions: Callable[[], None], on_diverged: Callable[[], None]
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: The replica's truth.
            pull: Asks the primary.
            on_versions: Called after the versions of the primary changed.
            on_diverged: Called once when the replica holds changes that its primary never made; it must be
                filled anew then.
        """
        self._store = store
        self._pull = pull
        self._on_versions = on_versions
        self._on_diverged = on_diverged
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._known: tuple[object, ...] = ()
        self._has_versions = bool(store.stored_versions())

    def start(self) -> None:
        """Begin to follow on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="follow")

    async def aclose(self) -> None:
        """Stop following; what was applied stays."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def reach(self, seq: int, timeout_s: float) -> None:
        """Return once the replica has the versions of its primary and has reached a log position.

        Raises:
            IndexUnavailable: It has not within `timeout_s`, or the primary cannot be asked.
        """
        if self._has_versions and self._store.seq() >= seq:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not self._has_versions or self._store.seq() < seq:
                    if not await self._step(0.0):
                        await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise IndexUnavailable(
                f"the replica did not reach log position {seq:,} within {timeout_s:g} s; ask its primary"
            ) from error

    async def see_active(self, version: str) -> None:
        """Pull until this version is the active one here too."""
        while not self._has_versions or self._store.version().version_id != version:
            if not await self._step(0.0):
                await asyncio.sleep(_POLL_S)

    async def _run(self) -> None:
        while True:
            try:
                await self._step(_LONG_POLL_S)
            except ShardRestarting:
                await asyncio.sleep(_RETRY_S)
            except RetrievalUnavailable as error:
                _log.warning("a replica waits for its primary: %s", error)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                # The run boundary: a replica that stops following in silence would lag for ever.
                _log.exception("a replica could not take up a change")
                await asyncio.sleep(_RETRY_S)

    async def _step(self, wait_s: float) -> bool:
        """Pull and apply one batch; False when there was nothing new."""
        seq, mark = await asyncio.to_thread(self._position)
        changes = await self._pull(seq, mark, wait_s)
        if changes.diverged:
            self._on_diverged()
            raise IndexUnavailable("the replica is being filled anew; ask its primary")
        batch = changes.batch
        async with self._turn:  # Two pulls may bring the same batch; it is applied once.
            if not batch.ops and self._about(batch) == self._known:
                return False
            await asyncio.to_thread(self._apply, batch)
            if self._about(batch) != self._known:
                self._known = self._about(batch)
                self._has_versions = bool(batch.versions)
                self._on_versions()
        return bool(batch.ops)

    def _position(self) -> tuple[int, str]:
        with self._store.snapshot() as snapshot:
            seq = snapshot.seq()
            return seq, snapshot.mark(seq)

    def _apply(self, batch: Batch) -> None:
        if batch.after_seq <= self._store.seq():
            self._store.apply(batch)

    @staticmethod
    def _about(batch: Batch) -> tuple[object, ...]:
        """Return what a batch says beside the documents."""
        return (tuple(batch.versions), tuple(batch.aliases), tuple(batch.fields))
