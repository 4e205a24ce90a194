"""A shard's side of a switch of versions: the record of switches, and the transaction kept open meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from retrieval.errors import IndexUnavailable, InvalidVersion, RetrievalError
from retrieval.service import LocalRetrieval
from retrieval.sharding.epochs import Epoch
from retrieval.sharding.held_transaction import HeldTransaction
from retrieval.versions import VersionState

_log = logging.getLogger(__name__)

_ENTER_RETRY_S = 0.5
_TRIES = 20
"""How often a version that a document overtook is brought up to date before a switch is refused."""


class SwitchSide:
    """Prepares, commits and remembers switches for one copy of a shard; belongs to one event loop."""

    def __init__(self, local: LocalRetrieval, *, standalone: bool) -> None:
        """Use the copy's record of switches; `reconcile` makes it and the store agree.

        Args:
            local: The copy.
            standalone: Whether this shard is the whole index: it switches, and writes the record, by itself.
        """
        self._ledger = local.ledger
        self._local = local
        self._store = local.store
        self._standalone = standalone
        self._prepared: _Prepared | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def reconcile(self) -> None:
        """Begin the record with the active version, or finish what a crash interrupted."""
        current = self._ledger.current
        if current is None or self._standalone:
            await self._local.record_active()
        elif (await asyncio.to_thread(self._store.version)).version_id != current.version:
            await self._activate(current)

    async def aclose(self) -> None:
        """Undo what is prepared."""
        if self._prepared is not None:
            await self._prepared.end(commit=False)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def epoch(self) -> Epoch:
        """Return the switch whose version answers."""
        current = self._ledger.current
        if current is None:
            raise IndexUnavailable(
                "this copy of the shard has not been told which version answers; ask another"
            )
        return current

    async def epochs(self) -> tuple[Epoch, ...]:
        """Return every switch, oldest first."""
        return self._ledger.history

    async def begin_epochs(self, history: Sequence[Epoch]) -> None:
        """Take over the switches of the index that this new shard joins."""
        await asyncio.to_thread(self._ledger.begin, history)

    async def target(self) -> str | None:
        """Return the version the configuration asks for, while it is being built."""
        return await asyncio.to_thread(self._store.target_version)

    async def prepare_switch(self, epoch: Epoch, lease_s: float) -> None:
        """Make the version active in a transaction that stays open; every write waits for its end.

        Raises:
            InvalidVersion: The version lacks documents, or another switch is under way or came first.
            UnknownVersion: It is not here.
        """
        if self._prepared is not None and not self._prepared.ended:
            if self._prepared.epoch == epoch:
                return  # A call that was repeated.
            raise InvalidVersion(
                f"a switch to '{self._prepared.epoch.version}' is under way; wait until it has ended"
            )
        current = await self.epoch()
        if epoch.epoch <= current.epoch:
            raise InvalidVersion(
                f"version '{current.version}' answers since epoch {current.epoch}; another switch came "
                "first: look at the versions and try again"
            )
        prepared = _Prepared(self._local, epoch, lease_s)
        await prepared.begin()
        self._prepared = prepared

    async def end_switch(self, epoch: int, commit: bool) -> None:
        """Commit or undo what was prepared for an epoch; nothing happens when nothing is."""
        prepared = self._prepared
        if prepared is not None and prepared.epoch.epoch == epoch:
            self._prepared = None
            await prepared.end(commit=commit)

    async def commit_epoch(self, epoch: Epoch) -> None:
        """Make the switch durable; see `EpochLedger.commit`."""
        await asyncio.to_thread(self._ledger.commit, epoch)

    async def enter_epoch(self, epoch: Epoch, is_primary: bool) -> None:
        """Answer from a version whose switch was committed; telling it twice changes nothing.

        Args:
            epoch: The switch.
            is_primary: Whether this copy's store is its own to change, and does not follow another's.
        """
        current = self._ledger.current
        if current is not None and epoch.epoch < current.epoch:
            return
        await self.commit_epoch(epoch)
        await self.end_switch(epoch.epoch, commit=True)
        if is_primary:
            await self._activate(epoch)

    async def revive(self, version: str) -> None:
        """Have a retired version follow the documents again."""
        stored = await asyncio.to_thread(self._store.version, version)
        await self._local.embedders.try_load(stored.spec)
        if stored.state is VersionState.RETIRED:
            await asyncio.to_thread(self._store.set_state, version, VersionState.BUILDING)
        self._local.ingestor.notify(versions=True)

    async def _activate(self, epoch: Epoch) -> None:
        """Have the store's active version be the epoch's; should it lack documents, once it does not."""
        try:
            await asyncio.to_thread(self._store.set_state, epoch.version, VersionState.ACTIVE)
        except InvalidVersion:
            await self.revive(epoch.version)
            task = asyncio.create_task(self._keep_entering(epoch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._local.forget_active()

    async def _keep_entering(self, epoch: Epoch) -> None:
        while self._ledger.current == epoch:
            await asyncio.sleep(_ENTER_RETRY_S)
            try:
                await asyncio.to_thread(self._store.set_state, epoch.version, VersionState.ACTIVE)
            except InvalidVersion:
                self._local.ingestor.notify(versions=True)
            except RetrievalError as error:
                _log.warning("version '%s' is not active yet: %s", epoch.version, error)
            else:
                self._local.forget_active()
                return


class _Prepared:
    """An open transaction in which a version is active, with everything else that holds writes back."""

    def __init__(self, local: LocalRetrieval, epoch: Epoch, lease_s: float) -> None:
        self.epoch = epoch
        self._local = local
        self._lease_s = lease_s
        self._held = contextlib.AsyncExitStack()
        self._transaction = self._new_transaction()
        self._releasing: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Return whether the transaction has ended."""
        return self._transaction.ended.is_set()

    async def begin(self) -> None:
        """Hold back versions' building and records, let the version take in what came last, and open it."""
        stored = await asyncio.to_thread(self._local.store.version, self.epoch.version)
        await self._local.embedders.try_load(stored.spec)
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._local.ingestor.caught_up())
            await self._local.gate.shut(self._lease_s)
            held.callback(self._local.gate.open)
            for left in reversed(range(_TRIES)):
                await self._local.ingestor.catch_up()
                try:
                    await self._transaction.begin()
                    break
                except InvalidVersion:  # A document became ready between the two.
                    if not left:
                        raise
                    self._transaction = self._new_transaction()
            self._held = held.pop_all()
        self._releasing = asyncio.create_task(self._release())

    async def end(self, *, commit: bool) -> None:
        """Commit or undo, and wait for it; nothing happens once the lease has ended."""
        try:
            await self._transaction.end(commit=commit)
        finally:
            if self._releasing is not None:
                await asyncio.shield(self._releasing)

    def _new_transaction(self) -> HeldTransaction:
        return HeldTransaction(lambda: self._local.store.switching(self.epoch.version), self._lease_s)

    async def _release(self) -> None:
        await self._transaction.ended.wait()
        self._local.forget_active()
        await self._held.aclose()
        self._local.ingestor.notify(versions=True)
