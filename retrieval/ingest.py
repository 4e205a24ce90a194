"""Taking queued documents to `ready`, one at a time, and surviving whatever they contain.

A document is read, cut, embedded and stored in the active version, which makes it ready; then the versions
that are ready beside it take it in. Where the active version's embedder is not here, the queue waits until a
version that can be built is switched to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from retrieval.embedding_work import ChunkEmbedding, EmbedderOf
from retrieval.errors import RetrievalUnavailable, StorageFull, UnreadableDocument
from retrieval.ingest_progress import Pace
from retrieval.reading import ReadingProcess
from retrieval.store import Store, Work
from retrieval.types import DocumentState
from retrieval.version_builder import VersionBuilder
from retrieval.version_tables import StoredVersion

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause after the embedder or the disk could not serve; the document stays queued meanwhile."""


class Ingestor:
    """Runs queued documents through reading, chunking and embedding into the store."""

    def __init__(
        self,
        store: Store,
        embedder_of: EmbedderOf,
        reading: ReadingProcess,
        on_complete: Callable[[StoredVersion], Awaitable[None]],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: The shard's truth.
            embedder_of: Returns a version's embedder, None while it is not here.
            reading: Reads and cuts documents.
            on_complete: Called, while building is held, when a version beside the active one lacks nothing.
        """
        self.pace = Pace()
        self._store = store
        self._work = ChunkEmbedding(embedder_of, reading)
        self._builder = VersionBuilder(store, self._work, embedder_of, on_complete)
        self._embedder_of = embedder_of
        self._reading = reading
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work through the queue on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ingest")
            self._builder.start()

    def notify(self, *, versions: bool = False) -> None:
        """Tell that a document was queued, or that a version may lack documents."""
        self._wake.set()
        if versions:
            self._builder.notify()

    def caught_up(self) -> AbstractAsyncContextManager[None]:
        """Hold the building of versions, every live one having taken in what it can."""
        return self._builder.caught_up()

    async def catch_up(self) -> None:
        """Have every live version take in what it can; for callers that hold the building."""
        await self._builder.catch_up()

    async def aclose(self) -> None:
        """Stop; a document under way is queued again when the shard is opened next."""
        await self._builder.aclose()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await asyncio.to_thread(self._reading.close)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                worked = await self._next_document()
            except RetrievalUnavailable as error:
                _log.warning("ingest waits: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if not worked:
                await self._wake.wait()

    async def _next_document(self) -> bool:
        """Take the document queued longest as far as it goes; False when there is none."""
        active = await asyncio.to_thread(self._store.version)
        if self._embedder_of(active.spec) is None:
            return False
        work = await asyncio.to_thread(self._store.claim)
        if work is None:
            return False
        with self.pace.document(work):
            await self._ingest(active, work)
        return True

    async def _ingest(self, active: StoredVersion, work: Work) -> None:
        """Take one document to `ready` or `failed`, or back to the queue when the fault is not its own."""
        try:
            if await self._make_searchable(active, work):
                await self._builder.keep_ready(work.document_id)
        except UnreadableDocument as error:
            await self._end(work, DocumentState.FAILED, str(error))
        except StorageFull as error:
            await self._end(work, DocumentState.FAILED, f"'{work.name}' could not be indexed: {error}")
        except RetrievalUnavailable as error:
            _log.warning("'%s' goes back to the queue: %s", work.name, error)
            await self._end(work, DocumentState.QUEUED, None)
            await asyncio.sleep(_RETRY_S)
        except Exception as error:
            # The run boundary: one document's bug must not stop the ingestion of all others.
            _log.exception("'%s' could not be ingested", work.name)
            reason = (
                f"'{work.name}' could not be ingested ({type(error).__name__}: {error}); please report this"
            )
            await self._end(work, DocumentState.FAILED, reason)

    async def _make_searchable(self, active: StoredVersion, work: Work) -> bool:
        media_type, document = await asyncio.to_thread(self._reading.read, work.name, work.data)
        if not await asyncio.to_thread(self._store.advance, work, DocumentState.CHUNKING):
            return False
        chunks = await self._work.cut(active.spec, work.name, document)
        if not await asyncio.to_thread(self._store.advance, work, DocumentState.EMBEDDING):
            return False
        embedded = await self._work.embed(
            active.spec,
            work.name,
            chunks,
            is_wanted=lambda: asyncio.to_thread(self._store.is_current, work),
            on_slice=self.pace.embedding,
        )
        if embedded is None:
            return False
        if await asyncio.to_thread(self._store.finish, work, media_type, document, embedded, active):
            return True
        # Still wanted: another version became active meanwhile.
        await asyncio.to_thread(self._store.advance, work, DocumentState.QUEUED)
        return False

    async def _end(self, work: Work, state: DocumentState, error: str | None) -> None:
        """Record how a document ended; on a full disk, keep trying: the queue must not forget it."""
        while True:
            try:
                await asyncio.to_thread(self._store.advance, work, state, error)
            except RetrievalUnavailable as unavailable:
                _log.warning("'%s' cannot be marked %s: %s", work.name, state, unavailable)
                await asyncio.sleep(_RETRY_S)
            else:
                return
