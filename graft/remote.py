"""A running platform over HTTP: the same seams as a local one, so the SDK and users' graphs cannot tell."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import httpx

from agents.budget import Budget
from agents.events import RunEvent, RunFinished
from agents.state import ChatTurn, RunResult, ThreadInfo
from graft.backend import PlatformStatus
from graft.errors import NotRunning
from graft.running import find_running
from graft.wire import error_from_json, event_from_json, from_json, to_json
from retrieval.errors import IngestTimeout
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentState,
    DocumentText,
    Library,
    Passage,
    SearchRequest,
    SearchResult,
)
from serving.types import GeneratedChunk, GenerateRequest, GeneratorInfo, GeneratorStats, Prompt

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

POLL_S = 0.2
"""How often a document's progress is asked for."""


class _Http:
    """Calls the platform and turns its errors into ours."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = await self.client.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise NotRunning(f"the platform at {self.client.base_url} does not answer: {error}") from error
        self._check(response)
        return response

    async def events(self, path: str, body: Any) -> AsyncIterator[Any]:
        """Yield the JSON of every server-sent event; closing the iterator closes the connection."""
        try:
            async with self.client.stream("POST", path, json=body) as response:
                if response.is_error:
                    await response.aread()
                    self._check(response)
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        data = json.loads(line[6:])
                        if isinstance(data, dict) and "error" in data and "type" not in data:
                            raise error_from_json(data, 500)
                        yield data
        except httpx.TransportError as error:
            raise NotRunning(f"the platform at {self.client.base_url} stopped answering: {error}") from error

    @staticmethod
    def _check(response: httpx.Response) -> None:
        if response.is_error:
            try:
                body = response.json()
            except json.JSONDecodeError:
                body = None
            raise error_from_json(body, response.status_code)


class _RemoteRetriever:
    def __init__(self, http: _Http) -> None:
        self._http = http

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        body = {"requests": [asdict(request) for request in requests]}
        response = await self._http.call("POST", "/v1/search", json=body)
        return [from_json(SearchResult, item) for item in response.json()["results"]]

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        response = await self._http.call("POST", "/v1/passages", json={"chunk_ids": list(chunk_ids)})
        return [item and from_json(Passage, item) for item in response.json()["passages"]]


class _RemoteStore:
    def __init__(self, http: _Http) -> None:
        self._http = http

    async def add(
        self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Document:
        response = await self._http.call(
            "POST", "/v1/documents", params={"library": library, "name": name}, content=data
        )
        return from_json(Document, response.json())

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        response = await self._http.call(
            "GET", "/v1/documents", params={"library": library} if library else {}
        )
        return [from_json(Document, item) for item in response.json()["documents"]]

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        response = await self._http.call("GET", f"/v1/documents/{document_id}")
        return from_json(Document, response.json())

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        response = await self._http.call("GET", f"/v1/documents/{document_id}/text")
        return from_json(DocumentText, response.json())

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        return (await self._http.call("GET", f"/v1/documents/{document_id}/content")).content

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        await self._http.call("DELETE", f"/v1/documents/{document_id}")

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        response = await self._http.call("GET", "/v1/libraries")
        return [from_json(Library, item) for item in response.json()["libraries"]]

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        end_s = time.monotonic() + timeout_s
        done: dict[str, Document] = {}
        while True:
            for document_id in document_ids:
                if document_id not in done:
                    document = await self.document(document_id)
                    if document.state in (DocumentState.READY, DocumentState.FAILED):
                        done[document_id] = document
            waiting = [document_id for document_id in document_ids if document_id not in done]
            if not waiting:
                return [done[document_id] for document_id in document_ids]
            if time.monotonic() > end_s:
                raise IngestTimeout(
                    f"{len(waiting)} documents not ready after {timeout_s:.0f} s: {', '.join(waiting[:5])}"
                )
            await asyncio.sleep(POLL_S)


class _RemoteGenerator:
    def __init__(self, http: _Http) -> None:
        self._http = http

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GeneratedChunk]:
        async for data in self._http.events("/v1/generate", to_json(request)):
            yield from_json(GeneratedChunk, data)

    async def count_tokens(self, prompt: Prompt) -> int:
        return (await self._http.call("POST", "/v1/tokens", json=to_json(prompt))).json()["num_tokens"]

    async def info(self) -> GeneratorInfo:
        return from_json(GeneratorInfo, (await self._http.call("GET", "/v1/generator")).json()["info"])

    async def stats(self) -> GeneratorStats:
        return from_json(GeneratorStats, (await self._http.call("GET", "/v1/generator")).json()["stats"])


class _RemoteRunner:
    """Runs a graph on the platform; `.graph` runs here, over the platform's parts."""

    def __init__(self, http: _Http, name: str, platform: RemotePlatform) -> None:
        self._http = http
        self._name = name
        self._platform = platform

    @property
    def graph(self) -> CompiledStateGraph:
        from agents.graphs import build

        return build(self._name).compile(name=self._name)

    async def run(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> AsyncIterator[RunEvent]:
        body = {
            "graph": self._name,
            "question": question,
            "thread_id": thread_id,
            "library": library,
            "document_ids": list(document_ids),
            "history": [to_json(turn) for turn in history],
            "budget": budget and asdict(budget),
        }
        async for data in self._http.events("/v1/runs", body):
            yield event_from_json(data)

    async def invoke(self, question: str, **kwargs: Any) -> RunResult:
        result: RunResult | None = None
        async for event in self.run(question, **kwargs):
            if isinstance(event, RunFinished):
                result = event.result
        if result is None:
            raise NotRunning("the platform ended the stream before the run finished; ask again")
        return result

    async def history(self, thread_id: str, *, tenant: str = DEFAULT_TENANT) -> list[ChatTurn]:
        response = await self._http.call("GET", f"/v1/threads/{thread_id}", params={"graph": self._name})
        return [from_json(ChatTurn, item) for item in response.json()["turns"]]

    async def threads(self, *, tenant: str = DEFAULT_TENANT) -> list[ThreadInfo]:
        response = await self._http.call("GET", "/v1/threads", params={"graph": self._name})
        return [from_json(ThreadInfo, item) for item in response.json()["threads"]]

    async def delete_thread(self, thread_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        await self._http.call("DELETE", f"/v1/threads/{thread_id}", params={"graph": self._name})


class RemotePlatform:
    """A `Backend` over HTTP."""

    def __init__(self, http: _Http, status: PlatformStatus) -> None:
        self._http = http
        self._graphs = status.graphs
        self.max_document_bytes = status.max_document_bytes
        self.retriever = _RemoteRetriever(http)
        self.store = _RemoteStore(http)
        self.generator = _RemoteGenerator(http)

    @classmethod
    async def connect(cls, address: str | None = None, *, token: str | None = None) -> Self:
        """Return the platform at `address`, or the one that runs from the home folder.

        Raises:
            NotRunning: Nothing answers there.
        """
        from graft.config import default_home

        if address is None:
            running = find_running(default_home())
            if running is None:
                raise NotRunning(f"no platform runs from {default_home()}; start one with `graft up`")
            address = running.url
        token = token or os.environ.get("GRAFT_TOKEN")
        client = httpx.AsyncClient(
            base_url=address,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(10.0, read=None),
        )
        http = _Http(client)
        try:
            status = from_json(PlatformStatus, (await http.call("GET", "/v1/status")).json())
        except BaseException:
            await client.aclose()
            raise
        return cls(http, status)

    def graphs(self) -> tuple[str, ...]:
        """Return the names of the platform's graphs."""
        return self._graphs

    def pipeline(self, graph: str) -> _RemoteRunner:
        """Return the runner of a graph.

        Raises:
            UnknownGraph: The platform has no graph of that name.
        """
        from agents.errors import UnknownGraph

        if graph not in self._graphs:
            raise UnknownGraph(f"no graph {graph!r}; the platform has: {', '.join(self._graphs)}")
        return _RemoteRunner(self._http, graph, self)

    async def status(self) -> PlatformStatus:
        """Return what runs there."""
        return from_json(PlatformStatus, (await self._http.call("GET", "/v1/status")).json())

    async def metrics(self) -> str:
        """Return its metrics as Prometheus text."""
        return (await self._http.call("GET", "/metrics")).text

    async def aclose(self) -> None:
        """Close the connection; the platform runs on."""
        await self._http.client.aclose()
