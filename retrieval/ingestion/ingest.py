"""Taking queued documents to `ready`, a few at a time, and surviving whatever they contain.

Documents are read and cut, embedded together, and stored in the active version, which makes them ready; then
the versions that are ready beside it take them in. The next ones are read meanwhile. Where the active
version's embedder is not here, the queue waits until a version that can be built is switched to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from retrieval.errors import RetrievalUnavailable, StorageFull, UnreadableDocument
from retrieval.extraction.reading import ReadingProcess
from retrieval.ingestion.embedding_work import SLICE_CHUNKS, ChunkEmbedding, EmbedderOf
from retrieval.ingestion.ingest_progress import Pace
from retrieval.ingestion.version_builder import VersionBuilder
from retrieval.truth.store import Finished, Store, Work
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import Chunk, DocumentState, DocumentText

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause after the embedder or the disk could not serve; the document stays queued meanwhile."""
_GROUP_DOCUMENTS = 64
_GROUP_BYTES = 8 * 1024 * 1024
"""Documents, and bytes of them, embedded together; of two groups at a time, one is being read."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document on its way, cut as the active version does."""

    version: StoredVersion
    work: Work
    media_type: str
    document: DocumentText
    chunks: list[Chunk]


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
        """Hold the building of versions, every live one having taken in what it lacked when that began."""
        return self._builder.caught_up()

    async def catch_up(self) -> None:
        """Have every live version take in what it can; for callers that hold the building and the writes."""
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
        group: list[_Cut] | None = None
        while True:
            self._wake.clear()
            # The next documents are read and cut while these are embedded.
            reading = asyncio.create_task(self._next_group(), name="read-documents")
            try:
                if group:
                    works, nums_chunks = [cut.work for cut in group], [len(cut.chunks) for cut in group]
                    with self.pace.group(works, nums_chunks):
                        await self._make_ready(group)
                group = await reading
            except RetrievalUnavailable as error:
                _log.warning("ingest waits: %s", error)
                group = []
                await asyncio.sleep(_RETRY_S)
            finally:
                if not reading.done():
                    reading.cancel()
                    await asyncio.wait([reading])
            if group is None:
                await self._wake.wait()

    async def _next_group(self) -> list[_Cut] | None:
        """Return the documents queued longest, cut: few enough to be embedded in one call; None for none."""
        active = await asyncio.to_thread(self._store.version)
        if self._embedder_of(active.spec) is None:
            return None
        group: list[_Cut] | None = None
        num_chunks = num_bytes = num_claimed = 0
        while num_chunks < SLICE_CHUNKS and num_bytes < _GROUP_BYTES and num_claimed < _GROUP_DOCUMENTS:
            try:
                work = await asyncio.to_thread(self._store.claim)
            except RetrievalUnavailable:
                if not group:
                    raise
                break
            if work is None:
                break
            group = [] if group is None else group
            num_claimed, num_bytes = num_claimed + 1, num_bytes + len(work.data)
            cut = await self._read_and_cut(active, work)
            if cut is not None:
                group.append(cut)
                num_chunks += len(cut.chunks)
        return group

    async def _read_and_cut(self, active: StoredVersion, work: Work) -> _Cut | None:
        """Return a document on its way; None when it ends here."""
        try:
            media_type, document = await asyncio.to_thread(self._reading.read, work.name, work.data)
            if await asyncio.to_thread(self._store.advance, work, DocumentState.CHUNKING):
                chunks = await self._work.cut(active.spec, work.name, document)
                if await asyncio.to_thread(self._store.advance, work, DocumentState.EMBEDDING):
                    return _Cut(active, work, media_type, document, chunks)
        except Exception as error:
            # The run boundary: one document must not stop the ingestion of all others.
            await self._end_badly([work], error)
        return None

    async def _make_ready(self, group: list[_Cut]) -> None:
        """Embed documents together and have them answer; should that fail through their fault, one by one."""
        try:
            await self._embed_and_finish(group)
        except Exception as error:
            # The run boundary, as above.
            if len(group) > 1 and not _is_ours(error):
                for cut in group:
                    await self._make_ready([cut])
            else:
                await self._end_badly([cut.work for cut in group], error)

    async def _embed_and_finish(self, group: list[_Cut]) -> None:
        active, first = group[0].version, group[0].work
        embedded = await self._work.embed(
            active.spec,
            first.name,
            [chunk for cut in group for chunk in cut.chunks],
            is_wanted=lambda: asyncio.to_thread(self._store.is_current, first),
            on_slice=self.pace.embedding,
        )
        if embedded is None:
            return
        parts = embedded.split([len(cut.chunks) for cut in group])
        finished = [
            Finished(cut.work, cut.media_type, cut.document, part)
            for cut, part in zip(group, parts, strict=True)
        ]
        done = await asyncio.to_thread(self._store.finish_all, finished, active)
        for cut, is_done in zip(group, done, strict=True):
            if not is_done:
                # If it is wanted still, another version became active meanwhile.
                await self._queue_again(cut.work)
        await self._builder.keep_ready(
            [cut.work.document_id for cut, is_done in zip(group, done, strict=True) if is_done]
        )

    async def _end_badly(self, works: list[Work], error: Exception) -> None:
        """Take documents to `failed`, or back to the queue when the fault is not their own."""
        for work in works:
            if _is_ours(error):
                _log.warning("'%s' goes back to the queue: %s", work.name, error)
                await self._queue_again(work)
            elif isinstance(error, UnreadableDocument):
                await self._end(work, DocumentState.FAILED, str(error))
            elif isinstance(error, StorageFull):
                await self._end(work, DocumentState.FAILED, f"'{work.name}' could not be indexed: {error}")
            else:
                _log.error("'%s' could not be ingested", work.name, exc_info=error)
                what = f"{type(error).__name__}: {error}"
                reason = f"'{work.name}' could not be ingested ({what}); please report this"
                await self._end(work, DocumentState.FAILED, reason)
        if _is_ours(error):
            await asyncio.sleep(_RETRY_S)

    async def _queue_again(self, work: Work) -> None:
        """Put a document back; the next group may have been asked for, and found nothing, meanwhile."""
        await self._end(work, DocumentState.QUEUED, None)
        self._wake.set()

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


def _is_ours(error: Exception) -> bool:
    """Return whether a failure is not the document's and may pass."""
    return isinstance(error, RetrievalUnavailable) and not isinstance(error, StorageFull)
