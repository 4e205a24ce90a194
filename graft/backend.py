"""What stands behind the SDK: this process's platform, or a remote one over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from agents.budget import Budget
from agents.events import RunEvent
from agents.state import ChatTurn, RunResult, ThreadInfo
from retrieval.admin import ShardedAdmin
from retrieval.graph_admin import GraphAdmin
from retrieval.ingestion.bulk import BulkProgress, Refused, SourceFile
from retrieval.types import Document, DocumentStore, Metadata, Retriever
from serving.types import Generator

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

PartState = Literal["starting", "ready", "failed", "off"]
"""Where a part of the platform stands."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the platform: index, embedder, generator, library."""

    name: str
    """Its name."""
    state: PartState
    """Where it stands."""
    detail: str
    """What it is, or why it failed and what to do."""


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    """What runs, and which release answers."""

    version: str
    """Version of Graft."""
    release: str | None
    """Id of the release that answers; None while it is not known."""
    parts: tuple[Part, ...]
    """Every part."""
    graphs: tuple[str, ...]
    """Names of the graphs that can be run."""
    max_document_bytes: int
    """Largest file that is accepted."""
    url: str | None = None
    """Address of the server; None without one."""
    bulk_files: int | None = None
    """From how many files it reads them in place, many at a time; None where it has no index."""

    @property
    def healthy(self) -> bool:
        """Return whether every part that should run does."""
        return all(part.state in ("ready", "off") for part in self.parts)


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of files."""

    documents: tuple[Document, ...]
    """Their documents, each ready or failed unless nobody waited for that."""
    refused: tuple[Refused, ...]
    """Files that are no document."""


class RunClient(Protocol):
    """Runs one graph: `agents.Pipeline` here, or the same calls on a remote platform."""

    def run(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
        tenant: str = "default",
    ) -> AsyncIterator[RunEvent]:
        """Stream the events of one run; closing the iterator cancels it down to the engine."""
        ...

    async def invoke(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
        tenant: str = "default",
    ) -> RunResult:
        """Return the result of one run."""
        ...

    async def history(self, thread_id: str, *, tenant: str = "default") -> list[ChatTurn]:
        """Return a thread's messages, oldest first."""
        ...

    async def threads(self, *, tenant: str = "default") -> list[ThreadInfo]:
        """Return the tenant's threads, latest first."""
        ...

    async def delete_thread(self, thread_id: str, *, tenant: str = "default") -> None:
        """Remove a thread and everything it holds."""
        ...

    @property
    def graph(self) -> CompiledStateGraph:
        """Return the compiled LangGraph."""
        ...


class Backend(Protocol):
    """A platform the SDK can stand on."""

    @property
    def retriever(self) -> Retriever:
        """Return the searcher."""
        ...

    @property
    def store(self) -> DocumentStore:
        """Return the document store."""
        ...

    @property
    def index(self) -> ShardedAdmin:
        """Return the operations on the index."""
        ...

    @property
    def graph(self) -> GraphAdmin:
        """Return the graph of entities."""
        ...

    @property
    def generator(self) -> Generator:
        """Return the language model."""
        ...

    @property
    def max_document_bytes(self) -> int:
        """Return the largest file that is accepted."""
        ...

    def pipeline(self, graph: str) -> RunClient:
        """Return the runner of a graph.

        Raises:
            UnknownGraph: No graph of that name.
        """
        ...

    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs that can be run."""
        ...

    async def status(self) -> PlatformStatus:
        """Return what runs."""
        ...

    async def metrics(self) -> str:
        """Return the metrics of every part as Prometheus text."""
        ...

    async def aclose(self) -> None:
        """Let go of everything that was opened or started."""
        ...


@runtime_checkable
class BulkBackend(Protocol):
    """A platform that reads files where they are, many at a time."""

    @property
    def bulk_files(self) -> int | None:
        """Return from how many files it is worth it; None where it cannot."""
        ...

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> Ingested:
        """Ingest files and return what became of them once each is ready or failed.

        Cancelling it ends the work; what was stored stays.

        Raises:
            NotInPlace: They have to be added one by one; the message says why.
            InvalidMetadata: A field cannot be stored.
            RetrievalUnavailable: A shard does not answer or has no room; what was stored before is kept.
        """
        ...
