"""Filling the index versions beside the active one from the documents that answer.

A version that is being built takes in a batch of what it lacks at a time, beside the queue of new documents;
one that is ready is given each document as soon as the active one has it. Both take the stored text, or copy
rows where embedder and chunking are the same. A version whose embedder is not here waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from retrieval.errors import InvalidVersion, RetrievalUnavailable, UnknownVersion, UnreadableDocument
from retrieval.ingestion.embedding_work import SLICE_CHUNKS, ChunkEmbedding, EmbedderOf
from retrieval.truth.store import Holding, Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import Chunk
from retrieval.versions import VersionSpec, VersionState

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause after an embedder or the disk could not serve."""
_BATCH_DOCUMENTS = 64
"""Documents a version takes in at a time."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document that answers, cut as another version does."""

    document_id: str
    content_hash: str
    name: str
    chunks: list[Chunk]


class VersionBuilder:
    """Keeps every live version but the active one complete. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        work: ChunkEmbedding,
        embedder_of: EmbedderOf,
        on_complete: Callable[[StoredVersion], Awaitable[None]],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: The shard's truth.
            work: Cuts and embeds.
            embedder_of: Returns a version's embedder, None while it is not here.
            on_complete: Called, while the building is held, when a version lacks nothing.
        """
        self._store = store
        self._work = work
        self._embedder_of = embedder_of
        self._on_complete = on_complete
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._cursors: dict[int, str] = {}
        self._complete_at: dict[int, int] = {}

    def start(self) -> None:
        """Begin to fill what lacks documents on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="build-versions")

    def notify(self) -> None:
        """Tell that a version may lack documents."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def caught_up(self) -> AsyncIterator[None]:
        """Hold the building, every live version having taken in what it lacked when that began.

        What keeps coming meanwhile is not waited for: under constant writes there would be no end of it.
        """
        async with self._turn:
            for _ in range(await self._num_steps()):
                if not await self._step():
                    break
            yield

    async def catch_up(self) -> None:
        """Have every live version take in what it can; for callers that hold the building and the writes."""
        while await self._step():
            pass

    async def aclose(self) -> None:
        """Stop; what a version lacks is found again when the shard is opened next."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def keep_ready(self, document_ids: list[str]) -> None:
        """Put documents that just became ready into the versions that are ready too.

        What goes wrong here is not the documents': the version lacks them and catches up later.
        """
        active = await asyncio.to_thread(self._store.version)
        for version in await self._live(active):
            if version.state is VersionState.READY:
                try:
                    await self._fill(active, version, document_ids)
                except (RetrievalUnavailable, UnknownVersion) as error:
                    _log.warning("index version '%s' falls behind: %s", version.version_id, error)
        self.notify()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                async with self._turn:
                    worked = await self._step()
            except UnknownVersion:
                continue  # It was dropped meanwhile.
            except RetrievalUnavailable as error:
                _log.warning("index versions wait: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                # The run boundary: a bug in one step must not stop all building for good.
                _log.exception("an index version could not be filled")
                await asyncio.sleep(_RETRY_S)
                continue
            if not worked:
                await self._wake.wait()

    async def _live(self, active: StoredVersion) -> list[StoredVersion]:
        """Return the versions beside the active one that are kept up to date and can be."""
        return [
            version
            for version in await asyncio.to_thread(self._store.stored_versions)
            if version.number != active.number
            and version.state in (VersionState.BUILDING, VersionState.READY)
            and (self._embedder_of(version.spec) is not None or copyable(active.spec, version.spec))
        ]

    async def _num_steps(self) -> int:
        """Return after how many steps every live version holds what it lacks now."""
        lacking = [
            await asyncio.to_thread(self._store.count_lacking, version.number)
            for version in await self._live(await asyncio.to_thread(self._store.version))
        ]
        # The sweep under way ends, and another begins.
        return 2 + sum(-(-count // _BATCH_DOCUMENTS) for count in lacking)

    async def _step(self) -> bool:
        """Give each live version a batch of the documents it lacks; False when none lacks any."""
        active = await asyncio.to_thread(self._store.version)
        worked = False
        for version in await self._live(active):
            after = self._cursors.get(version.number, "")
            complete_at = self._complete_at.get(version.number, 0)
            seq = await asyncio.to_thread(self._store.seq)
            lacking = await asyncio.to_thread(
                self._store.lacking, version.number, after, _BATCH_DOCUMENTS, complete_at
            )
            if lacking:
                await self._fill(active, version, lacking)
                self._cursors[version.number] = lacking[-1]
                worked = True
            elif after:
                self._cursors[version.number] = ""
                worked = True  # Once more from the start: documents came or changed meanwhile.
            elif await self._is_complete(version):
                self._complete_at[version.number] = seq
            else:
                worked = True
        return worked

    async def _is_complete(self, version: StoredVersion) -> bool:
        """Tell that a version lacks nothing; False when a document came at this very moment."""
        try:
            if version.state is VersionState.BUILDING:
                version = await asyncio.to_thread(
                    self._store.set_state, version.version_id, VersionState.READY
                )
            await self._on_complete(version)
        except InvalidVersion:
            return False
        return True

    async def _fill(self, active: StoredVersion, version: StoredVersion, document_ids: list[str]) -> None:
        """Put documents that answer into a version."""
        if copyable(active.spec, version.spec):
            await asyncio.to_thread(self._store.copy_rows, active, version, document_ids)
            return
        group: list[_Cut] = []
        for document_id in document_ids:
            cut = await self._cut_stored(version, document_id)
            if cut is not None:
                group.append(cut)
            if sum(len(one.chunks) for one in group) >= SLICE_CHUNKS:
                await self._embed_and_hold(version, group)
                group = []
        await self._embed_and_hold(version, group)

    async def _cut_stored(self, version: StoredVersion, document_id: str) -> _Cut | None:
        stored = await asyncio.to_thread(self._store.stored_text, document_id)
        if stored is None:
            return None
        text = stored.document.text
        if stored.is_record:
            return _Cut(document_id, stored.content_hash, stored.name, [Chunk(0, text, 0, len(text))])
        try:
            chunks = await self._work.cut(version.spec, stored.name, stored.document)
        except UnreadableDocument as error:
            await self._give_up(version, document_id, stored.content_hash, str(error))
            return None
        return _Cut(document_id, stored.content_hash, stored.name, chunks)

    async def _embed_and_hold(self, version: StoredVersion, documents: list[_Cut]) -> None:
        """Embed documents together; should that fail through their fault, one by one."""
        chunks = [chunk for document in documents for chunk in document.chunks]
        if not chunks:
            return
        try:
            embedded = await self._work.embed(version.spec, documents[0].name, chunks)
            if embedded is not None:
                parts = embedded.split([len(document.chunks) for document in documents])
                held = [
                    Holding(document.document_id, document.content_hash, part)
                    for document, part in zip(documents, parts, strict=True)
                ]
                await asyncio.to_thread(self._store.hold, version.number, held)
        except (RetrievalUnavailable, UnknownVersion):
            raise
        except Exception as error:
            # The run boundary: one document must not stop the building of a version.
            if len(documents) > 1:
                for document in documents:
                    await self._embed_and_hold(version, [document])
                return
            _log.exception("'%s' could not be embedded for '%s'", documents[0].name, version.version_id)
            reason = f"'{documents[0].name}' could not be embedded ({type(error).__name__}: {error})"
            await self._give_up(version, documents[0].document_id, documents[0].content_hash, reason)

    async def _give_up(self, version: StoredVersion, document_id: str, content_hash: str, error: str) -> None:
        await asyncio.to_thread(self._store.give_up, version.number, document_id, content_hash, error)


def copyable(source: VersionSpec, target: VersionSpec) -> bool:
    """Return whether a version's rows can be made of another's without its embedder and without loss."""
    same = all(
        getattr(source, name) == getattr(target, name)
        for name in ("model_hash", "model_dim", "chunk_tokens", "chunk_overlap_tokens", "max_chunk_chars")
    )
    whole = source.vectors == "float32" and source.dim in (0, source.model_dim)
    return same and whole and target.tokens in ("none", source.tokens)
