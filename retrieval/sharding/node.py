"""One copy of one shard in this process: a primary that ingests and takes writes, or a replica of one."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, ShardMoved
from retrieval.graph.types import TextModel
from retrieval.ingestion.embedders import LoadEmbedder
from retrieval.ingestion.taking_in import ReadDocument
from retrieval.service import LocalRetrieval
from retrieval.sharding.epochs import Epoch
from retrieval.sharding.follower import Follower
from retrieval.sharding.held_transaction import HeldTransaction
from retrieval.sharding.log_side import LogSide
from retrieval.sharding.shard_copy import Answered, Call, Changes, ShardCopy
from retrieval.sharding.switch_side import SwitchSide
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, Document, Embedder, Metadata
from retrieval.versions import VersionInfo

_log = logging.getLogger(__name__)

_PULL_MARGIN_S = 10.0
_READS = ("candidates", "term_stats", "vectors", "token_codes", "passages", "neighbours")
_LOCAL = (
    "ready", "search", "upsert", "documents", "document", "text", "content", "libraries", "wait_ready",
    "versions", "wait_version", "drop_version", "set_alias", "switch", "rollback", "segments", "compact",
    "estimate_recall", "snapshot", "progress", "collect", "drop_retired", "load",
)  # fmt: skip
_GRAPH = (
    "entities", "neighbourhood", "communities", "stats", "retry_failed", "drop", "libraries", "answer",
)  # fmt: skip
_WRITES = (
    "add", "take_in", "delete", "upsert", "make_version", "switch", "rollback", "drop_version", "set_alias",
    "collect", "drop_retired", "prepare_switch", *(f"graph_{name}" for name in _GRAPH),
)  # fmt: skip
"""Methods that the primary alone answers; it alone keeps a graph."""
_NOBODY = -1
_SHARD_FILES = ("shard.sqlite3", "shard.sqlite3-wal", "shard.sqlite3-shm", "epochs.json")

Peer = Callable[[int], ShardCopy]
"""Returns another copy of the same shard by its slot."""


class ShardNode:
    """A `ShardCopy` in this process; belongs to one event loop. Open it with `ShardNode.open`."""

    def __init__(
        self,
        folder: Path,
        slot: int,
        primary: int,
        open_local: Callable[[bool], Awaitable[LocalRetrieval]],
        peer: Peer,
        *,
        standalone: bool,
    ) -> None:
        """Prepare; `open` is the usual way.

        Args:
            folder: Holds the copy.
            slot: Its number among the copies.
            primary: Slot of the copy that takes writes; -1 for none yet.
            open_local: Opens what is in the folder, following or not.
            peer: Finds the primary.
            standalone: Whether this shard is the whole index and switches versions by itself.
        """
        self._folder = folder
        self._slot = slot
        self._primary = primary
        self._open_local = open_local
        self._peer = peer
        self._standalone = standalone
        self._changing = asyncio.Lock()
        self._held: HeldTransaction | None = None
        self._seeding: asyncio.Task[None] | None = None
        self._follower: Follower | None = None
        self._methods: dict[str, Callable[..., Awaitable[Any]]] = {}
        self.local: LocalRetrieval
        """Everything of the shard."""

    @classmethod
    async def open(
        cls,
        folder: Path,
        name: str,
        config: RetrievalConfig,
        embedder: Embedder,
        *,
        slot: int = 0,
        primary: int = 0,
        standalone: bool = True,
        peer: Peer | None = None,
        load_embedder: LoadEmbedder | None = None,
        text_model: TextModel | None = None,
    ) -> ShardNode:
        """Open or create the copy in `folder`; a primary begins to ingest, a replica to follow.

        Args:
            folder: Holds the copy.
            name: The shard's name.
            config: Settings.
            embedder: The one `config.embedder` names.
            slot: The copy's number.
            primary: Slot of the copy that takes writes; -1 for a shard that is still being filled.
            standalone: Whether this shard is the whole index and switches versions by itself.
            peer: Finds the other copies; None where there are none.
            load_embedder: Loads embedders of other versions.
            text_model: Finds entities where `config.graph` is `llm`.

        Raises:
            IndexUnavailable: The copy cannot be opened.
            StorageFull: The disk has no room for it.
        """

        async def open_local(following: bool) -> LocalRetrieval:
            return await LocalRetrieval.open(
                folder,
                config,
                embedder,
                load_embedder=load_embedder,
                text_model=text_model,
                name=name,
                auto_switch=standalone,
                following=following,
            )

        def nobody(slot: int) -> ShardCopy:
            raise IndexUnavailable(f"{name} has no copy {slot}")

        node = cls(folder, slot, primary, open_local, peer or nobody, standalone=standalone)
        await node._begin()
        return node

    @property
    def slot(self) -> int:
        """Return the copy's number."""
        return self._slot

    @property
    def is_primary(self) -> bool:
        """Return whether this copy takes the writes."""
        return self._slot == self._primary

    async def answer(self, call: Call, timeout_s: float) -> Answered:
        """Return what a method returns; see `ShardCopy.answer`."""
        method = self._methods.get(call.method)
        if method is None:
            raise IndexUnavailable("this copy of the shard is being filled; ask another one")
        if call.method in _WRITES and self._primary not in (self._slot, _NOBODY):
            raise ShardMoved(
                f"copy {self._primary} takes the writes of {self.local.reader.name}; ask that one"
            )
        try:
            async with asyncio.timeout(timeout_s):
                if self._follower is not None:
                    await self._follower.reach(call.min_seq, timeout_s)
                value = await method(*call.args, **call.kwargs)
        except TimeoutError as error:
            raise IndexUnavailable(
                f"{self.local.reader.name} did not answer within {timeout_s:g} s; it is busy: try again"
            ) from error
        if call.method in ("search", "candidates"):
            return Answered(value, max((one.seq for one in value), default=0))
        return Answered(value, 0 if call.method in _READS else self.local.store.seq())

    async def aclose(self) -> None:
        """Stop following or ingesting and close the copy."""
        if self._seeding is not None:
            self._seeding.cancel()
            await asyncio.wait({self._seeding})
        await self._close()

    async def _close(self) -> None:
        if self._follower is not None:
            await self._follower.aclose()
        self._methods = {}
        await self._switching.aclose()
        await self._release()
        await self.local.aclose()

    async def remove(self) -> None:
        """Close the copy and remove its files."""
        await self.aclose()
        await asyncio.to_thread(remove_copy, self._folder)

    # Documents: what moves with a reshard passes the gate.

    async def add(
        self,
        name: str,
        data: bytes,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> Document:
        """Store a file durably and queue it; see `DocumentStore.add`."""
        async with self.local.gate.writing():
            return await self.local.add(name, data, library=library, tenant=tenant, metadata=metadata)

    async def take_in(
        self,
        read: Sequence[ReadDocument],
        version_id: str,
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
    ) -> list[Document]:
        """Store documents that were read, cut and embedded elsewhere; see `taking_in.take_in`."""
        async with self.local.gate.writing():
            return await self.local.take_in(
                read, version_id, library=library, tenant=tenant, metadata=metadata
            )

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document; see `DocumentStore.delete`."""
        async with self.local.gate.writing():
            await self.local.delete(document_id, tenant=tenant)

    async def make_version(self, change: VersionChange) -> VersionInfo:
        """Begin to build a version; see `IndexAdmin.make_version`."""
        async with self.local.gate.writing():
            return await self.local.make_version(change)

    # A reshard: hold writes back, refuse them for good, or take over.

    async def shut(self, lease_s: float) -> None:
        """Hold every write back, the ingestion's too, until `move` or until the lease ends."""
        await self._release()
        await self.local.gate.shut(lease_s)
        self._held = HeldTransaction(self.local.store.held, lease_s)
        await self._held.begin()

    async def move(self, moved: bool) -> None:
        """Refuse every write from now on, or let them through again."""
        if moved:
            self.local.gate.move()
        else:
            self.local.gate.stay()
            await self._release()

    async def enter_epoch(self, epoch: Epoch) -> None:
        """Answer from a version whose switch was committed; see `SwitchSide.enter_epoch`."""
        if self._follower is not None:
            await self._follower.see_active(epoch.version)
        await self._switching.enter_epoch(epoch, self.is_primary)

    async def found(self, versions: Sequence[VersionInfo], epochs: Sequence[Epoch]) -> None:
        """Give an empty copy the versions of the index and its switches so far."""
        await self._log_side.make_versions(versions)
        await self._switching.begin_epochs(epochs)

    async def set_primary(self, slot: int) -> None:
        """Follow another copy, or be the one that takes writes."""
        async with self._changing:
            self._primary = slot
            if self._follower is not None:
                await self._follower.aclose()
                self._follower = None
            if self.is_primary:
                await self.local.lead()
                await self._switching.reconcile()
            else:
                # What this copy may have done as the primary of before is not in the log it follows now.
                self._follow()

    async def _begin(self) -> None:
        following = not self.is_primary
        self.local = await self._open_local(following)
        store = self.local.store
        self._log_side = LogSide(store)
        self._switching = SwitchSide(self.local, standalone=self._standalone)
        if following:
            if self._primary >= 0:
                self._follow()
        else:
            await self._switching.reconcile()
        self._methods = {name: getattr(self.local, name) for name in _LOCAL}
        self._methods |= {name: getattr(self.local.reader, name) for name in _READS}
        self._methods |= {f"graph_{name}": getattr(self.local.graph, name) for name in _GRAPH}
        for side in (self._log_side, self._switching, self):
            for name in _OWN[type(side)]:
                self._methods[name] = getattr(side, name)

    def _follow(self) -> None:
        async def pull(seq: int, mark: str, wait_s: float) -> Changes:
            call = Call("changes_since", (seq, mark, wait_s))
            return (await self._peer(self._primary).answer(call, wait_s + _PULL_MARGIN_S)).value

        self._follower = Follower(self.local.store, pull, self.local.forget_active, self._diverged)
        self._follower.start()

    def _diverged(self) -> None:
        """Fill the copy anew: its log is not a beginning of its primary's."""
        if self._seeding is None or self._seeding.done():
            self._seeding = asyncio.create_task(self._seed())

    async def _seed(self) -> None:
        async with self._changing:
            _log.warning("copy %d in '%s' is filled anew from its primary", self._slot, self._folder)
            await self._close()
            await asyncio.to_thread(remove_copy, self._folder)
            await self._begin()

    async def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.end(commit=False)


_OWN: dict[type, tuple[str, ...]] = {
    LogSide: ("seq", "changes_since", "version_rows", "named_versions", "adopt", "count", "export_page"),
    SwitchSide: (
        "epoch", "epochs", "prepare_switch", "end_switch", "commit_epoch", "revive", "target",
    ),
    ShardNode: (
        "add", "take_in", "delete", "make_version", "shut", "move", "found", "enter_epoch", "set_primary",
    ),
}  # fmt: skip
"""Methods a router may call, by who answers them."""


def remove_copy(folder: Path) -> None:
    """Remove the files of a copy of a shard, and its folder when nothing else is in it."""
    for name in _SHARD_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "segments", ignore_errors=True)
    if not any(path.name != "lock" for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
