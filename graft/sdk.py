"""The Python SDK's core, `AsyncGraft`; its sync and async twin for any thread or loop is `graft.blocking`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from graft.backend import Backend, Ingested, PlatformStatus
from graft.bulk import OnProgress, ingest_sources, unreadable
from graft.folders import source_files
from graft.graph import AsyncGraph
from graft.index import AsyncIndex
from graft.pipelines import AsyncPipeline
from retrieval.filter_parsing import parse_filter
from retrieval.filters import Filter
from retrieval.ingestion.bulk import SourceFile
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Acknowledged,
    Document,
    DocumentText,
    Expand,
    Fusion,
    Library,
    Metadata,
    Passage,
    Record,
    Rerank,
    Retriever,
    SearchMode,
    SearchRequest,
    SearchResult,
)
from serving.types import Generator

if TYPE_CHECKING:
    from graft.config import GraftConfig
    from graft.stages import OnStage
    from graft.watching import Watched

PathLike = str | Path


class AsyncGraft:
    """A platform, started here or attached to; use as `async with await AsyncGraft.up() as g:`."""

    def __init__(self, backend: Backend, tenant: str = DEFAULT_TENANT) -> None:
        self._backend = backend
        self._tenant = tenant

    @classmethod
    async def up(
        cls,
        config: GraftConfig | None = None,
        *,
        on_stage: OnStage | None = None,
        parts: Iterable[str] | None = None,
        url: str | None = None,
    ) -> Self:
        """Start a platform in this process and return it.

        Args:
            config: Configuration; None reads `graft.toml` of the current folder, or the defaults.
            on_stage: Called with every stage as it starts and ends.
            parts: Only these of `retrieval`, `generator`; None for all.
            url: Address it will be served at; shown by `status`.

        Raises:
            StartError: It cannot start here; the message says what to do.
        """
        from graft.config import load_config
        from graft.platform import Platform

        return cls(await Platform.start(config or load_config(), on_stage=on_stage, parts=parts, url=url))

    @classmethod
    async def connect(cls, address: str | None = None, *, token: str | None = None) -> Self:
        """Attach to a running platform.

        Args:
            address: Its base URL; None finds the one that runs from the home folder.
            token: Its secret; None takes GRAFT_TOKEN from the environment.

        Raises:
            NotRunning: Nothing answers there.
        """
        from graft.remote import RemotePlatform

        return cls(await RemotePlatform.connect(address, token=token))

    @staticmethod
    async def restore(snapshot: PathLike, config: GraftConfig | None = None) -> Path | None:
        """Put a snapshot in place of the index of a platform that does not run.

        Args:
            snapshot: The folder that `index.snapshot` wrote.
            config: Names the home folder; None reads `graft.toml` of the current folder, or the defaults.

        Returns:
            Where the index that was there is now; None when there was none.

        Raises:
            StartError: A platform runs from the home folder.
            IndexUnavailable: The folder is torn or no snapshot.
        """
        from graft.config import load_config
        from graft.restore import restore

        return await asyncio.to_thread(restore, Path(snapshot), config or load_config())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop what was started here, or leave what was attached to."""
        await self._backend.aclose()

    @property
    def generator(self) -> Generator:
        """Return the language model."""
        return self._backend.generator

    @property
    def retriever(self) -> Retriever:
        """Return the searcher."""
        return self._backend.retriever

    @property
    def index(self) -> AsyncIndex:
        """Return the index: versions, compaction, snapshots, recall, progress, import and export."""
        return AsyncIndex(self._backend.index, self._backend.store, self._tenant)

    @property
    def graph(self) -> AsyncGraph:
        """Return the graph of entities: by name, by connection, and as communities."""
        return AsyncGraph(self._backend.graph, self._tenant)

    @property
    def max_document_bytes(self) -> int:
        """Return the largest file that is accepted."""
        return self._backend.max_document_bytes

    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs `pipeline` takes."""
        return self._backend.graphs()

    def pipeline(self, graph: str = "rag") -> AsyncPipeline:
        """Return a graph, ready to run.

        Raises:
            UnknownGraph: No graph of that name; the message lists those there are.
        """
        return AsyncPipeline(self._backend.pipeline(graph), self._tenant)

    async def status(self) -> PlatformStatus:
        """Return what runs and which release answers."""
        return await self._backend.status()

    async def metrics(self) -> str:
        """Return the metrics of every part as Prometheus text."""
        return await self._backend.metrics()

    async def libraries(self) -> list[Library]:
        """Return the libraries, ordered by name."""
        return await self._backend.store.libraries(tenant=self._tenant)

    async def documents(self, library: str | None = None) -> list[Document]:
        """Return the documents of a library, or of all, ordered by name."""
        return await self._backend.store.documents(library=library, tenant=self._tenant)

    async def document(self, document_id: str) -> Document:
        """Return one document."""
        return await self._backend.store.document(document_id, tenant=self._tenant)

    async def text(self, document_id: str) -> DocumentText:
        """Return the extracted text of a document."""
        return await self._backend.store.text(document_id, tenant=self._tenant)

    async def content(self, document_id: str) -> bytes:
        """Return the original bytes of a document."""
        return await self._backend.store.content(document_id, tenant=self._tenant)

    async def add(
        self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY, metadata: Metadata | None = None
    ) -> Document:
        """Store a file and queue it; returns once it is durable.

        Args:
            name: A plain file name.
            data: Its bytes.
            library: Where it goes; made when new.
            metadata: Typed fields that filters can name; None keeps those it has.

        Raises:
            InvalidDocument: The file is empty, too large, or its name is no plain file name.
            InvalidMetadata: A field's name or type cannot be stored.
        """
        return await self._backend.store.add(
            name, data, library=library, tenant=self._tenant, metadata=metadata
        )

    async def upsert(self, records: Iterable[Record], *, library: str = DEFAULT_LIBRARY) -> Acknowledged:
        """Store texts as they are, one chunk each, in place of those of the same name; searchable at once.

        Raises:
            InvalidDocument: A record is empty or too long, or two have one name.
            InvalidVector: A vector does not fit the active index version.
            InvalidMetadata: A field's name or type cannot be stored.
        """
        return await self._backend.store.upsert(list(records), library=library, tenant=self._tenant)

    async def ingest(
        self,
        paths: PathLike | Iterable[PathLike],
        *,
        library: str = DEFAULT_LIBRARY,
        metadata: Metadata | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Document]:
        """Add files, and the files of folders, and wait until each is ready or failed.

        A file of a folder is named by its path below that folder, so equal names in two of its subfolders are
        two documents. So many files as `retrieval.bulk_files` are read and embedded through Ray Data by the
        platform, within `retrieval.bulk_memory_bytes`; one that is attached to reads them in place where it
        runs on this machine for the same user, and is sent them otherwise. Cancelling it ends the work;
        what was taken in stays, and the same call goes on from there.

        Args:
            paths: Files or folders.
            library: Where they go.
            metadata: Typed fields of every one of them; None keeps those they have.
            wait: Whether to wait; if not, it returns with the documents as queued.
            timeout_s: Patience; None for as long as it takes.
            on_progress: Called now and then, from the platform's own thread.

        Raises:
            InvalidDocument: A path does not exist, and nothing was added; or files cannot be read, and all
                others are in.
            InvalidMetadata: A field's name or type cannot be stored.
            IngestTimeout: Some are still under way.
        """
        roots = [paths] if isinstance(paths, str | Path) else list(paths)
        files = await asyncio.to_thread(source_files, [Path(root) for root in roots])
        found = await self.ingest_files(
            files,
            library=library,
            metadata=metadata,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )
        if found.refused:
            raise unreadable(found)
        return list(found.documents)

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str = DEFAULT_LIBRARY,
        metadata: Metadata | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Ingested:
        """Ingest files under given names, as `ingest` does, and return those that are no document too.

        Of files with one name the last is taken. Errors are those of `ingest`, but for InvalidDocument.
        """
        return await ingest_sources(
            self._backend,
            files,
            library=library,
            tenant=self._tenant,
            metadata=metadata,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )

    async def wait_ready(self, document_ids: Sequence[str], *, timeout_s: float = 600.0) -> list[Document]:
        """Return documents once each is ready or failed.

        Raises:
            IngestTimeout: Some are still under way; the message names them.
        """
        return await self._backend.store.wait_ready(document_ids, timeout_s=timeout_s, tenant=self._tenant)

    def watch(
        self,
        folder: PathLike,
        *,
        library: str = DEFAULT_LIBRARY,
        metadata: Metadata | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[Watched]:
        """Ingest a folder and follow it: yields what became of each file, until the iterator is closed.

        A document is deleted when its file is removed while the folder is watched.

        Args:
            folder: The folder, with its subfolders.
            library: Where the documents go.
            metadata: Typed fields of every one of them; None keeps those they have.
            on_progress: Told how far the files found at the start, and those that changed together, are.

        Raises:
            InvalidDocument: The folder does not exist.
        """
        from graft.watching import watch

        return watch(self, Path(folder), library=library, metadata=metadata, on_progress=on_progress)

    async def delete(self, document_id: str) -> None:
        """Remove a document; when this returns, no query finds it."""
        await self._backend.store.delete(document_id, tenant=self._tenant)

    async def search(
        self,
        query: str,
        *,
        k: int = 10,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        mode: SearchMode = "hybrid",
        filter: Filter | str | Mapping[str, object] | None = None,
        fusion: Fusion = "convex",
        alpha: float | None = None,
        rerank: Rerank = "auto",
        mmr: float | None = None,
        expand: Expand = "none",
        version: str | None = None,
        min_seq: Mapping[str, int] | None = None,
        deadline_s: float | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> SearchResult:
        """Return the best passages for a query.

        Args:
            query: Search string.
            k: Passages wanted.
            library: Only this library; None for all.
            document_ids: Only these documents; empty for all.
            mode: Which legs answer.
            filter: Only documents whose metadata satisfy it: a `retrieval.filters` value, its JSON form, or
                text such as `year >= 1990 and lang in ("en", "de")`.
            fusion: How hybrid search joins its legs.
            alpha: Weight of the dense leg, 0 to 1; None for the configured one.
            rerank: What reorders the fused candidates.
            mmr: From 1, relevance alone, to 0, diversity alone; None leaves the order.
            expand: What each passage grows by.
            version: Index version or alias that answers; None for the active one.
            min_seq: What `Acknowledged.seqs` of a write said, to read that write.
            deadline_s: Seconds after which shards and stages still under way are left out, and named.
            exact: Whether the dense leg must be exact.
            explain: Whether the result says how it came about.

        Raises:
            InvalidSearch: The query is empty or too long, or an option is out of range.
            InvalidFilter: The filter is malformed, or names an unknown field.
            UnknownVersion: There is no such version.
        """
        request = SearchRequest(
            query=query,
            k=k,
            library=library,
            document_ids=tuple(document_ids),
            mode=mode,
            tenant=self._tenant,
            filter=parse_filter(filter) if isinstance(filter, str | Mapping) else filter,
            fusion=fusion,
            alpha=alpha,
            rerank=rerank,
            mmr=mmr,
            expand=expand,
            version=version,
            min_seq=min_seq,
            deadline_s=deadline_s,
            exact=exact,
            explain=explain,
        )
        return (await self._backend.retriever.search([request]))[0]

    async def passages(self, chunk_ids: Sequence[str]) -> list[Passage | None]:
        """Return the passages of chunks; None for those that no longer exist."""
        return await self._backend.retriever.passages(chunk_ids, tenant=self._tenant)
