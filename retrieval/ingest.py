"""Taking queued documents to `ready`, one at a time, and surviving whatever they contain."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import numpy as np

from retrieval.errors import RetrievalUnavailable, StorageFull, UnreadableDocument
from retrieval.reading import ReadingProcess
from retrieval.store import Store, Work
from retrieval.types import Chunk, DocumentState, DocumentText, Embedder

_log = logging.getLogger(__name__)

_SLICE_CHUNKS = 256
"""Chunks a call to the embedder: between calls a deleted or replaced document is noticed and dropped."""
_RETRY_S = 1.0
"""Pause after the embedder or the disk could not serve; the document stays queued meanwhile."""


class Ingestor:
    """Runs queued documents through reading, chunking and embedding into the store."""

    def __init__(self, store: Store, embedder: Embedder, reading: ReadingProcess) -> None:
        """Prepare; `start` begins."""
        self._store = store
        self._embedder = embedder
        self._reading = reading
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work through the queue on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ingest")

    def notify(self) -> None:
        """Tell that a document was queued."""
        self._wake.set()

    async def aclose(self) -> None:
        """Stop; a document under way is queued again when the shard is opened next."""
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
                work = await asyncio.to_thread(self._store.claim)
            except RetrievalUnavailable as error:
                _log.warning("ingest waits: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if work is None:
                await self._wake.wait()
                continue
            await self._ingest(work)

    async def _ingest(self, work: Work) -> None:
        """Take one document to `ready` or `failed`, or back to the queue when the fault is not its own."""
        try:
            await self._make_searchable(work)
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

    async def _make_searchable(self, work: Work) -> None:
        media_type, document = await asyncio.to_thread(self._reading.read, work.name, work.data)
        if not await asyncio.to_thread(self._store.advance, work, DocumentState.CHUNKING):
            return
        chunks = await asyncio.to_thread(self._reading.chunks, work.name, document)
        if not await asyncio.to_thread(self._store.advance, work, DocumentState.EMBEDDING):
            return
        vectors_ND = await self._embed(work, chunks)
        if vectors_ND is not None:
            await asyncio.to_thread(self._finish, work, media_type, document, chunks, vectors_ND)

    async def _embed(self, work: Work, chunks: list[Chunk]) -> np.ndarray | None:
        """Return float32[len(chunks), dim]; None when the document is no longer wanted."""
        slices = []
        for start in range(0, len(chunks), _SLICE_CHUNKS):
            if start and not await asyncio.to_thread(self._store.is_current, work):
                return None
            texts = [chunk.text for chunk in chunks[start : start + _SLICE_CHUNKS]]
            slices.append(await self._embedder.embed_passages(texts))
        return np.concatenate(slices)

    def _finish(
        self, work: Work, media_type: str, document: DocumentText, chunks: list[Chunk], vectors_ND: np.ndarray
    ) -> None:
        if not np.isfinite(vectors_ND).all():
            raise UnreadableDocument(
                f"the embedder made vectors of '{work.name}' that are not numbers; check its weights"
            )
        self._store.finish(work, media_type, document, chunks, vectors_ND)

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
