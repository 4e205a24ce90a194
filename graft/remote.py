"""A running platform over HTTP: the same seams as a local one, so the SDK and users' graphs cannot tell."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import httpx

from agents.budget import Budget
from agents.events import RunEvent, RunFinished
from agents.state import ChatTurn, RunResult, ThreadInfo
from graft.backend import Ingested, PlatformStatus
from graft.bulk import OnProgress
from graft.errors import NotRunning
from graft.http_client import HttpClient
from graft.remote_graph import RemoteGraph
from graft.remote_ingest import ingest_in_place
from graft.remote_retrieval import RemoteIndex, RemoteRetriever, RemoteStore
from graft.running import find_running
from graft.wire import event_from_json, from_json, to_json
from retrieval.ingestion.bulk import SourceFile
from retrieval.types import DEFAULT_TENANT, Metadata
from serving.types import GeneratedChunk, GenerateRequest, GeneratorInfo, GeneratorStats, Prompt

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


class _RemoteGenerator:
    def __init__(self, http: HttpClient) -> None:
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

    def __init__(self, http: HttpClient, name: str, platform: RemotePlatform) -> None:
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

    def __init__(self, http: HttpClient, status: PlatformStatus) -> None:
        self._http = http
        self._graphs = status.graphs
        self.max_document_bytes = status.max_document_bytes
        self.bulk_files = status.bulk_files
        self.retriever = RemoteRetriever(http)
        self.store = RemoteStore(http)
        self.index = RemoteIndex(http)
        self.graph = RemoteGraph(http)
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
        http = HttpClient(client)
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

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: OnProgress | None = None,
    ) -> Ingested:
        """Have the platform read files of this machine itself; see `BulkBackend.ingest_files`."""
        return await ingest_in_place(
            self._http, files, library=library, metadata=metadata, on_progress=on_progress
        )

    async def aclose(self) -> None:
        """Close the connection; the platform runs on."""
        await self._http.client.aclose()
