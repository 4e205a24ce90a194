"""The Python SDK: `AsyncGraft` is the core; `Graft` is its sync and async twin for any thread or loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from graft.backend import Backend, PlatformStatus
from graft.folders import document_files
from graft.pipelines import AsyncPipeline, Pipeline
from graft.twin import async_twin, sync_twin
from retrieval.files import read_file
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentText,
    Library,
    Passage,
    Retriever,
    SearchMode,
    SearchRequest,
    SearchResult,
)
from serving.types import Generator

if TYPE_CHECKING:
    from graft.config import GraftConfig
    from graft.stages import OnStage

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

    async def add(self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY) -> Document:
        """Store a file and queue it; returns once it is durable.

        Raises:
            InvalidDocument: The file is empty, too large, or its name is no plain file name.
        """
        return await self._backend.store.add(name, data, library=library, tenant=self._tenant)

    async def ingest(
        self,
        paths: PathLike | Iterable[PathLike],
        *,
        library: str = DEFAULT_LIBRARY,
        timeout_s: float | None = 600.0,
    ) -> list[Document]:
        """Add files, and the files of folders, and wait until each is ready or failed.

        Args:
            paths: Files or folders.
            library: Where they go.
            timeout_s: Patience; None returns at once with the documents as queued.

        Raises:
            InvalidDocument: A path does not exist or cannot be read; those before it are kept.
            IngestTimeout: Some are still under way; the message names them.
        """
        roots = [paths] if isinstance(paths, str | Path) else list(paths)
        added = [
            await self.add(path.name, read_file(path, self._backend.max_document_bytes), library=library)
            for root in roots
            for path in document_files(Path(root))
        ]
        if timeout_s is None:
            return added
        return await self._backend.store.wait_ready(
            [document.document_id for document in added], timeout_s=timeout_s, tenant=self._tenant
        )

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
    ) -> SearchResult:
        """Return the best passages for a query.

        Raises:
            InvalidSearch: The query is empty or too long, or k is out of range.
        """
        request = SearchRequest(query, k, library, tuple(document_ids), mode, self._tenant)
        return (await self._backend.retriever.search([request]))[0]

    async def passages(self, chunk_ids: Sequence[str]) -> list[Passage | None]:
        """Return the passages of chunks; None for those that no longer exist."""
        return await self._backend.retriever.passages(chunk_ids, tenant=self._tenant)


class Graft:
    """A platform for plain Python: `with Graft.up() as g:` or `with Graft.connect() as g:`.

    Every method has an async twin whose name starts with `a`; both run on the platform's own loop.
    """

    def __init__(self, core: AsyncGraft, portal: BlockingPortal, closing: ExitStack) -> None:
        self._core = core
        self._portal = portal
        self._closing = closing

    @classmethod
    def up(
        cls,
        config: GraftConfig | None = None,
        *,
        on_stage: OnStage | None = None,
        parts: Iterable[str] | None = None,
    ) -> Graft:
        """Start a platform in this process; arguments and errors as in `AsyncGraft.up`."""
        return cls._open(lambda: AsyncGraft.up(config, on_stage=on_stage, parts=parts))

    @classmethod
    def connect(cls, address: str | None = None, *, token: str | None = None) -> Graft:
        """Attach to a running platform; arguments and errors as in `AsyncGraft.connect`."""
        return cls._open(lambda: AsyncGraft.connect(address, token=token))

    @classmethod
    def _open(cls, opened: Callable[[], Any]) -> Graft:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            core: AsyncGraft = portal.call(opened)
            stack.callback(portal.call, core.aclose)
            return cls(core, portal, stack.pop_all())

    def __enter__(self) -> Graft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop what was started here, or leave what was attached to."""
        self._closing.close()

    @property
    def generator(self) -> Generator:
        """Return the language model, for use on an event loop of your own."""
        return self._core.generator

    @property
    def retriever(self) -> Retriever:
        """Return the searcher, for use on an event loop of your own."""
        return self._core.retriever

    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs `pipeline` takes."""
        return self._core.graphs()

    def pipeline(self, graph: str = "rag") -> Pipeline:
        """Return a graph, ready to run; errors as in `AsyncGraft.pipeline`."""
        return Pipeline(self._core.pipeline(graph), self._portal)

    status = sync_twin(AsyncGraft.status)
    astatus = async_twin(AsyncGraft.status)
    metrics = sync_twin(AsyncGraft.metrics)
    ametrics = async_twin(AsyncGraft.metrics)
    libraries = sync_twin(AsyncGraft.libraries)
    alibraries = async_twin(AsyncGraft.libraries)
    documents = sync_twin(AsyncGraft.documents)
    adocuments = async_twin(AsyncGraft.documents)
    document = sync_twin(AsyncGraft.document)
    adocument = async_twin(AsyncGraft.document)
    text = sync_twin(AsyncGraft.text)
    atext = async_twin(AsyncGraft.text)
    content = sync_twin(AsyncGraft.content)
    acontent = async_twin(AsyncGraft.content)
    add = sync_twin(AsyncGraft.add)
    aadd = async_twin(AsyncGraft.add)
    ingest = sync_twin(AsyncGraft.ingest)
    aingest = async_twin(AsyncGraft.ingest)
    delete = sync_twin(AsyncGraft.delete)
    adelete = async_twin(AsyncGraft.delete)
    search = sync_twin(AsyncGraft.search)
    asearch = async_twin(AsyncGraft.search)
    passages = sync_twin(AsyncGraft.passages)
    apassages = async_twin(AsyncGraft.passages)
