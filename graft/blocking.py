"""`Graft`: the SDK for plain Python, the sync and async twin of `AsyncGraft`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from graft.graph import Graph
from graft.index import Index
from graft.pipelines import Pipeline
from graft.sdk import AsyncGraft
from graft.twin import async_stream, async_twin, sync_stream, sync_twin
from retrieval.types import Retriever
from serving.types import Generator

if TYPE_CHECKING:
    from graft.config import GraftConfig
    from graft.stages import OnStage


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

    @staticmethod
    def restore(snapshot: str | Path, config: GraftConfig | None = None) -> Path | None:
        """Put a snapshot in place of the index of a platform that does not run; as `AsyncGraft.restore`."""
        from graft.config import load_config
        from graft.restore import restore

        return restore(Path(snapshot), config or load_config())

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

    @property
    def max_document_bytes(self) -> int:
        """Return the largest file that is accepted."""
        return self._core.max_document_bytes

    @property
    def index(self) -> Index:
        """Return the index: versions, compaction, snapshots, recall, progress, import and export."""
        return Index(self._core.index, self._portal)

    @property
    def graph(self) -> Graph:
        """Return the graph of entities: by name, by connection, and as communities."""
        return Graph(self._core.graph, self._portal)

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
    upsert = sync_twin(AsyncGraft.upsert)
    aupsert = async_twin(AsyncGraft.upsert)
    ingest = sync_twin(AsyncGraft.ingest)
    aingest = async_twin(AsyncGraft.ingest)
    ingest_files = sync_twin(AsyncGraft.ingest_files)
    aingest_files = async_twin(AsyncGraft.ingest_files)
    wait_ready = sync_twin(AsyncGraft.wait_ready)
    await_ready = async_twin(AsyncGraft.wait_ready)
    watch = sync_stream(AsyncGraft.watch)
    awatch = async_stream(AsyncGraft.watch)
    delete = sync_twin(AsyncGraft.delete)
    adelete = async_twin(AsyncGraft.delete)
    search = sync_twin(AsyncGraft.search)
    asearch = async_twin(AsyncGraft.search)
    passages = sync_twin(AsyncGraft.passages)
    apassages = async_twin(AsyncGraft.passages)
