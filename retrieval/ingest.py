"""Taking queued documents to `ready`, and every other live version to what the active one holds.

One document at a time is read, cut, embedded and stored in the active version; then the versions beside it
take it in from the stored text. Between documents, a version that lacks any catches up by one batch, so
neither the queue nor a build starves the other. A version whose embedder is not here waits; when that is the
active one, the queue waits with it until a version that can be built is switched to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from retrieval.embedding_work import ChunkEmbedding
from retrieval.errors import InvalidVersion, RetrievalUnavailable, StorageFull, UnreadableDocument
from retrieval.ingest_progress import Pace
from retrieval.reading import ReadingProcess
from retrieval.store import Embedded, Holding, Store, Work
from retrieval.types import Chunk, DocumentState, Embedder
from retrieval.version_tables import StoredVersion
from retrieval.versions import VersionSpec, VersionState

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause after the embedder or the disk could not serve; the document stays queued meanwhile."""
_CATCH_UP_DOCUMENTS = 64
"""Documents a version that lacks some takes in at a time, before the queue has its turn again."""

EmbedderOf = Callable[[VersionSpec], Embedder | None]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document that answers, cut as another version does."""

    document_id: str
    content_hash: str
    name: str
    chunks: list[Chunk]


class Ingestor:
    """Runs queued documents through reading, chunking and embedding into the store."""

    def __init__(
        self,
        store: Store,
        embedder_of: EmbedderOf,
        reading: ReadingProcess,
        on_ready: Callable[[StoredVersion], Awaitable[None]],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            store: The shard's truth.
            embedder_of: Returns a version's embedder, None while it is not here.
            reading: Reads and cuts documents.
            on_ready: Called, while the work is held, when a version beside the active one lacks nothing.
        """
        self.pace = Pace()
        self._store = store
        self._work = ChunkEmbedding(embedder_of, reading)
        self._embedder_of = embedder_of
        self._reading = reading
        self._on_ready = on_ready
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._behind = True
        self._cursors: dict[int, str] = {}

    def start(self) -> None:
        """Begin to work through the queue on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ingest")

    def notify(self, *, versions: bool = False) -> None:
        """Tell that a document was queued, or that a version may lack documents."""
        self._behind = self._behind or versions
        self._wake.set()

    @contextlib.asynccontextmanager
    async def caught_up(self) -> AsyncIterator[None]:
        """Hold the work between two documents, every live version having taken in what it can."""
        async with self._turn:
            await self.catch_up()
            yield

    async def catch_up(self) -> None:
        """Have every live version take in what it can; for callers that hold the work."""
        self._behind = True
        while await self._catch_up():
            pass

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
                async with self._turn:
                    worked = await self._next_document()
                    worked = await self._catch_up() or worked
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
                await self._hold_elsewhere(active, work.document_id)
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

    async def _hold_elsewhere(self, active: StoredVersion, document_id: str) -> None:
        """Put a document that just became ready into every other live version at once.

        What goes wrong here is not the document's: the version lacks it and catches up later.
        """
        for version in await self._live_versions(active):
            try:
                await self._fill(active, version, [document_id])
            except RetrievalUnavailable as error:
                self._behind = True
                _log.warning("index version '%s' falls behind: %s", version.version_id, error)

    async def _live_versions(self, active: StoredVersion) -> list[StoredVersion]:
        """Return the versions beside the active one that are kept up to date and can be."""
        return [
            version
            for version in await asyncio.to_thread(self._store.stored_versions)
            if version.number != active.number
            and version.state in (VersionState.BUILDING, VersionState.READY)
            and (self._embedder_of(version.spec) is not None or copyable(active.spec, version.spec))
        ]

    async def _catch_up(self) -> bool:
        """Give each live version a batch of the documents it lacks; False when none lacks any."""
        if not self._behind:
            return False
        active = await asyncio.to_thread(self._store.version)
        worked = False
        for version in await self._live_versions(active):
            after = self._cursors.get(version.number, "")
            lacking = await asyncio.to_thread(self._store.lacking, version.number, after, _CATCH_UP_DOCUMENTS)
            if lacking:
                await self._fill(active, version, lacking)
                self._cursors[version.number] = lacking[-1]
                worked = True
            elif after:
                self._cursors[version.number] = ""
                worked = True  # Once more from the start: documents came or changed meanwhile.
            else:
                worked = not await self._is_complete(version) or worked
        self._behind = worked
        return worked

    async def _is_complete(self, version: StoredVersion) -> bool:
        """Tell that a version lacks nothing; False when a document came at this very moment."""
        try:
            if version.state is VersionState.BUILDING:
                version = await asyncio.to_thread(
                    self._store.set_state, version.version_id, VersionState.READY
                )
            await self._on_ready(version)
        except InvalidVersion:
            return False
        return True

    async def _fill(self, active: StoredVersion, version: StoredVersion, document_ids: list[str]) -> None:
        """Put documents that answer into a version beside the active one."""
        if copyable(active.spec, version.spec):
            await asyncio.to_thread(self._store.copy_rows, active, version, document_ids)
            return
        cut = [await self._cut_stored(version, document_id) for document_id in document_ids]
        await self._embed_and_hold(version, [one for one in cut if one is not None])

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
                held = _parts(documents, embedded)
                await asyncio.to_thread(self._store.hold, version.number, held)
        except RetrievalUnavailable:
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


def _parts(documents: list[_Cut], embedded: Embedded) -> list[Holding]:
    """Return each document's share of chunks embedded together."""
    parts, start = [], 0
    for document in documents:
        stop = start + len(document.chunks)
        part = Embedded(document.chunks, embedded.vectors_NM[start:stop], embedded.token_codes[start:stop])
        parts.append(Holding(document.document_id, document.content_hash, part))
        start = stop
    return parts


def copyable(source: VersionSpec, target: VersionSpec) -> bool:
    """Return whether a version's rows can be made of another's without its embedder and without loss."""
    same = all(
        getattr(source, name) == getattr(target, name)
        for name in ("model_hash", "model_dim", "chunk_tokens", "chunk_overlap_tokens", "max_chunk_chars")
    )
    whole = source.vectors == "float32" and source.dim in (0, source.model_dim)
    return same and whole and target.tokens in ("none", source.tokens)
