"""What the page needs of a platform: the async SDK, seen from here. A fake obeys the same protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from agents.events import RunEvent
from agents.state import ChatTurn, ThreadInfo
from retrieval.types import Document, DocumentText, Library, SearchResult


class PipelineClient(Protocol):
    """One graph, ready to run."""

    def stream(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: tuple[str, ...] = (),
    ) -> AsyncIterator[RunEvent]:
        """Stream the events of one run; `aclose` of the iterator cancels it down to the engine."""
        ...

    async def history(self, thread_id: str) -> list[ChatTurn]:
        """Return a thread's messages, oldest first."""
        ...

    async def threads(self) -> list[ThreadInfo]:
        """Return the kept threads, latest first."""
        ...

    async def delete_thread(self, thread_id: str) -> None:
        """Remove a thread."""
        ...


class GraftClient(Protocol):
    """A running platform, on behalf of one tenant."""

    def pipeline(self, graph: str) -> PipelineClient:
        """Return a graph, ready to run."""
        ...

    async def libraries(self) -> list[Library]:
        """Return the libraries, ordered by name."""
        ...

    async def documents(self, library: str | None = None) -> list[Document]:
        """Return the documents of a library, or of all, ordered by name."""
        ...

    async def document(self, document_id: str) -> Document:
        """Return one document."""
        ...

    async def text(self, document_id: str) -> DocumentText:
        """Return the extracted text of a document."""
        ...

    async def add(self, name: str, data: bytes, *, library: str) -> Document:
        """Store a file and queue it; returns once it is durable."""
        ...

    async def delete(self, document_id: str) -> None:
        """Remove a document; when this returns, no query finds it."""
        ...

    async def search(self, query: str, *, k: int = 10, library: str | None = None) -> SearchResult:
        """Return the best passages for a query."""
        ...
