"""Retrieval in one process: embedders, shard, ingestion and search composed.

`LocalRetrieval` is a `Retriever`, a `DocumentStore` and an `IndexAdmin`. A configuration that differs from
the one before makes an index version beside the active one, which answers until the new one holds every
document. Where the active version's embedder cannot be had any more, it answers by words only, and new
documents wait for the switch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.errors import IngestTimeout, InvalidDocument, InvalidVector, UnknownVersion
from retrieval.extraction.files import check_name
from retrieval.extraction.reading import ReadingProcess
from retrieval.graph.types import Extractor, TextModel
from retrieval.ingestion.embedders import Embedders, LoadEmbedder, MissingEmbedder, spec_of
from retrieval.ingestion.graph_follower import GraphFollower, extractor_of
from retrieval.ingestion.ingest import Ingestor
from retrieval.ingestion.taking_in import ReadDocument, take_in
from retrieval.local_admin import LocalAdmin
from retrieval.local_graph import LocalGraph
from retrieval.ranking.searcher import Searcher
from retrieval.ranking.view import IndexView
from retrieval.requests import check_document
from retrieval.shard.shard import LocalShard, Shard
from retrieval.sharding.epochs import EpochLedger
from retrieval.sharding.write_gate import WriteGate
from retrieval.truth.records import Vectors
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Acknowledged,
    Document,
    DocumentState,
    DocumentText,
    Embedder,
    Library,
    Metadata,
    Passage,
    Record,
    SearchRequest,
    SearchResult,
    Stage,
)
from retrieval.versions import VersionState

_POLL_S = 0.02
_SETTLED = (DocumentState.READY, DocumentState.FAILED)
_KEPT_BESIDE = frozenset((VersionState.BUILDING, VersionState.READY))
"""States in which a version beside the active one takes in what that one does."""


class LocalRetrieval(LocalAdmin):
    """Everything of retrieval in this process; open it with `LocalRetrieval.open` and `async with`."""

    def __init__(
        self,
        shard: Shard,
        embedders: Embedders,
        reading: ReadingProcess,
        ledger: EpochLedger,
        *,
        auto_switch: bool = True,
        extractor: Extractor | None = None,
    ) -> None:
        """Compose; `open` is the usual way.

        Args:
            shard: The documents and their index; its `configure`d version exists.
            embedders: The embedders that are here.
            reading: Reads and cuts documents.
            ledger: The record of switches.
            auto_switch: Whether a version the configuration asks for is switched to when it is complete; not
                so where several shards switch together.
            extractor: Finds entities for the graph; None to keep none.
        """
        self._shard = shard
        self._store = self.store = shard.store
        """The shard's truth."""
        self._embedders = self.embedders = embedders
        """The embedders that are here."""
        self._reading = reading
        self._auto_switch = auto_switch
        self._gate = self.gate = WriteGate()
        """Holds records back while the version switches or documents move."""
        self._ledger = self.ledger = ledger
        """The record of switches."""
        self._switching = False
        self._collecting: asyncio.Task[None] | None = None
        self._active: IndexView | None = None
        self._reader = self.reader = LocalShard(shard)
        """The shard as a search over several sees it."""
        self._searcher = Searcher(self._view_of, shard.config)
        self._ingestor = self.ingestor = Ingestor(shard.store, embedders.of, reading, self._version_complete)
        self._graph_follower = GraphFollower(shard.store, extractor)
        self.graph = LocalGraph(shard.store, self._graph_follower)
        """The entities that chunks name, and how they are connected."""
        self._timings: dict[str, float] = {}

    @classmethod
    async def open(
        cls,
        folder: Path,
        config: RetrievalConfig,
        embedder: Embedder,
        *,
        load_embedder: LoadEmbedder | None = None,
        text_model: TextModel | None = None,
        name: str = "shard-0",
        auto_switch: bool = True,
        following: bool = False,
    ) -> LocalRetrieval:
        """Open the shard in `folder` and begin to ingest what is queued there.

        Args:
            folder: Holds the shard; created if missing.
            config: Settings.
            embedder: The one `config.embedder` names.
            load_embedder: Loads others, for versions made with them; None when there are none.
            text_model: Finds entities where `config.graph` is `llm`.
            name: The shard's name.
            auto_switch: See `__init__`.
            following: Whether another copy of the shard changes and this one follows: versions come from it,
                and nothing is ingested until `lead`.

        Raises:
            IndexUnavailable: The shard cannot be opened.
            StorageFull: The disk has no room for it.
            ValueError: Chunks of `config.chunk_tokens` would be cut by the embedder, or the graph wants a
                language model and none is given.
        """
        extractor = extractor_of(config, text_model)
        started = time.perf_counter()
        embedders = Embedders(load_embedder)
        spec = spec_of(await embedders.use(embedder), config)
        embedder_ready = time.perf_counter()
        ledger = await asyncio.to_thread(EpochLedger, folder)
        shard = await asyncio.to_thread(Shard, folder, config, name)
        reading = ReadingProcess(config)
        retrieval = cls(shard, embedders, reading, ledger, auto_switch=auto_switch, extractor=extractor)
        try:
            if not following:
                await asyncio.to_thread(shard.store.configure, spec)
                await retrieval.lead()
        except BaseException:
            await retrieval.aclose()
            raise
        retrieval._timings = {
            "embedder_s": embedder_ready - started,
            "open_s": time.perf_counter() - embedder_ready,
        }
        return retrieval

    async def lead(self) -> None:
        """Begin to ingest: from now on this copy of the shard is the one that changes."""
        await asyncio.to_thread(self._store.requeue_unfinished)
        self.forget_active()
        active = await asyncio.to_thread(self._store.version)
        await self._embedders.try_load(active.spec)
        if self._auto_switch:
            await self.record_active()
        await asyncio.to_thread(self._shard.open_version)
        await asyncio.to_thread(self._reading.start)
        self._ingestor.start()
        await self._graph_follower.start()

    def forget_active(self) -> None:
        """Look up anew which version answers."""
        self._active = None

    async def __aenter__(self) -> LocalRetrieval:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop ingesting and close the shard; the embedders are their makers' to close."""
        await self._graph_follower.aclose()
        await self._ingestor.aclose()
        if self._collecting is not None:
            await self._collecting
        await asyncio.to_thread(self._shard.close)

    async def ready(self) -> dict[str, float]:
        """Return seconds by stage of opening."""
        return self._timings

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`."""
        try:
            return await self._search(requests)
        except UnknownVersion:
            # The version that answered may have been switched away from, and removed, meanwhile.
            if all(request.version is not None for request in requests):
                raise
            return await self._search(requests)

    async def _search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        asked, by_words = list(requests), set()
        for position, request in enumerate(asked):
            if request.mode == "hybrid" and isinstance(
                self._view_of(request.version).embedder, MissingEmbedder
            ):
                asked[position] = replace(request, mode="lexical", rerank="none")
                by_words.add(position)
        results = await self._searcher.search(asked)
        for position in by_words:
            skipped = Stage("dense", 0.0, skipped="the version's embedder is not loaded")
            result = results[position]
            results[position] = replace(result, stages=(*result.stages, skipped))
        return results

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; None where deleted or not the tenant's."""
        return await self._searcher.passages(chunk_ids, tenant=tenant)

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
        document = await asyncio.to_thread(self._shard.add, name, data, library, tenant, metadata)
        self._ingestor.notify()
        return document

    async def take_in(
        self,
        read: Sequence[ReadDocument],
        version_id: str,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> list[Document]:
        """Store documents that were read, cut and embedded elsewhere; see `taking_in.take_in`."""
        for one in read:
            check_document(one.name, one.data, library, tenant, self._shard.config)
        taken = await asyncio.to_thread(
            take_in, self._store, read, version_id, library=library, tenant=tenant, metadata=metadata
        )
        self._ingestor.notify(versions=True)
        return taken

    async def upsert(
        self, records: Sequence[Record], *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Acknowledged:
        """Store records in one transaction; see `DocumentStore.upsert`."""
        check_name(library, what="library name")
        check_name(tenant, what="tenant name")
        limit = self._shard.config.max_record_chars
        for record in records:
            if len(record.text) > limit:
                raise InvalidDocument(
                    f"record {record.name!r} has {len(record.text):,} characters, above max_record_chars="
                    f"{limit:,}; add it as a document, which is cut into chunks, or raise the limit"
                )
        if not records:
            return Acknowledged({self._shard.name: await asyncio.to_thread(self._store.seq)}, 0)
        # A switch waits for records under way.
        async with self._gate.writing():
            if all(record.vector is not None for record in records):
                seq, others_lack = await asyncio.to_thread(self._store_given, records, library, tenant)
            else:
                active = await asyncio.to_thread(self._store.version)
                made = await self._embedded(active, records)
                seq, others_lack = await asyncio.to_thread(
                    self._store_made, records, library, tenant, active, made
                )
        if others_lack:
            self._ingestor.notify(versions=True)
        return Acknowledged({self._shard.name: seq}, len(records))

    def _store_given(self, records: Sequence[Record], library: str, tenant: str) -> tuple[int, bool]:
        """Store records that all bring their vector, in one turn of a thread; see `_store_made`."""
        active = self._store.version()
        made = Vectors(_given_vectors(active, records))
        return self._store_made(records, library, tenant, active, made)

    def _store_made(
        self, records: Sequence[Record], library: str, tenant: str, active: StoredVersion, made: Vectors
    ) -> tuple[int, bool]:
        """Return the log position of stored records, and whether versions beside the active one lack them."""
        seq = self._store.upsert(tenant, library, records, {active.number: made})
        # Looked up after the commit: a version that is made later finds the records by itself.
        beside = (version.state for version in self._store.stored_versions() if version != active)
        return seq, not _KEPT_BESIDE.isdisjoint(beside)

    async def _embedded(self, version: StoredVersion, records: Sequence[Record]) -> Vectors:
        """Return the records' vectors in a version: the caller's where given, embedded where not."""
        spec = version.spec
        vectors_NM = _given_vectors(version, records)
        missing = [i for i, record in enumerate(records) if record.vector is None]
        embedder = self._embedders.of(spec) or MissingEmbedder(spec)
        texts = [records[i].text for i in missing]
        if spec.tokens == "none":
            vectors_NM[missing] = await embedder.embed_passages(texts)
            return Vectors(vectors_NM)
        vectors_NM[missing], tokens = await embedder.embed_passages_with_tokens(texts, spec.tokens)
        # Who brings a vector does not wait for the embedder: such a record has no token codes.
        codes = dict(zip(missing, tokens.codes, strict=True))
        return Vectors(vectors_NM, [codes.get(i, b"") for i in range(len(records))])

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        found = await asyncio.to_thread(self._store.documents, library, tenant)
        return [self._with_share(document) for document in found]

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document; raises UnknownDocument."""
        return self._with_share(await asyncio.to_thread(self._store.document, document_id, tenant))

    def _with_share(self, document: Document) -> Document:
        """Return a document with the share that is embedded, while it is being embedded."""
        if document.state is not DocumentState.EMBEDDING:
            return document
        return replace(document, share=self._ingestor.pace.share_of(document.document_id))

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text of a document that is or was ready; raises UnknownDocument."""
        return await asyncio.to_thread(self._store.text, document_id, tenant)

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes of what answers; raises UnknownDocument."""
        return await asyncio.to_thread(self._store.content, document_id, tenant)

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store; when this returns, no query finds it."""
        await asyncio.to_thread(self._store.delete, document_id, tenant)

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        return await asyncio.to_thread(self._store.libraries, tenant)

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is `ready` or `failed`; see `DocumentStore.wait_ready`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = await asyncio.to_thread(self._store.documents_by_id, document_ids, tenant)
            waiting = [document for document in found if document.state not in _SETTLED]
            if not waiting:
                return found
            if time.monotonic() >= deadline:
                names = ", ".join(f"'{document.name}' ({document.state})" for document in waiting[:10])
                raise IngestTimeout(
                    f"{len(waiting)} documents still under way after {timeout_s:g} s: {names}; "
                    "they go on in the background: wait longer or ask again"
                )
            await asyncio.sleep(_POLL_S)

    def _view_of(self, name: str | None) -> IndexView:
        """Return what answers for a version; the active one's is kept until a switch."""
        if self._active is not None and name in (None, self._active.version):
            return self._active
        version = self._store.version(name)
        view = IndexView(
            version=version.version_id,
            epoch=self._store.epoch(),
            spec=version.spec,
            embedder=self._embedders.of(version.spec) or MissingEmbedder(version.spec),
            shards=(self._reader,),
        )
        if name is None:
            self._active = view
        return view


def _given_vectors(version: StoredVersion, records: Sequence[Record]) -> np.ndarray:
    """Return float32[len(records), model_dim] with the vectors that records bring, the other rows unset.

    Raises:
        InvalidVector: One has another dimension than the version's embedder makes.
    """
    vectors_NM = np.empty((len(records), version.spec.model_dim), dtype=np.float32)
    for i, record in enumerate(records):
        if record.vector is None:
            continue
        vector = np.asarray(record.vector, dtype=np.float32)
        if vector.shape != (version.spec.model_dim,):
            raise InvalidVector(
                f"the vector of record {record.name!r} has shape {vector.shape}; index version "
                f"{version.version_id!r} takes vectors of {version.spec.model_dim} numbers"
            )
        vectors_NM[i] = vector
    return vectors_NM
