"""The HTTP server: chat, documents, search, runs, health and metrics, and the chat page at `/`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from agents.budget import Budget
from agents.state import ChatTurn
from graft.access import TOKEN_COOKIE, Access
from graft.admission import Admission, Guard, error_response, event_stream, sse, while_connected
from graft.config import ServerConfig
from graft.drain import Drain
from graft.graph_api import graph_router
from graft.in_place import InPlace
from graft.index_api import index_router
from graft.ingest_api import ingest_router
from graft.request_spans import RequestSpans
from graft.sdk import AsyncGraft
from graft.wire import OURS, answer_to_json, event_to_json, failure_of, metadata_of, to_json
from retrieval.errors import InvalidDocument
from retrieval.filter_parsing import parse_filter
from retrieval.types import DEFAULT_LIBRARY, Expand, Fusion, Rerank, SearchMode, SearchRequest
from serving.types import GenerateRequest, Prompt

logger = logging.getLogger(__name__)


class Body(BaseModel):
    """A JSON body; unknown keys are refused by name."""

    model_config = ConfigDict(extra="forbid")


class SearchItem(Body):
    """One query."""

    query: str
    k: int = 10
    library: str | None = None
    document_ids: tuple[str, ...] = ()
    mode: SearchMode = "hybrid"
    filter: dict[str, Any] | str | None = None
    fusion: Fusion = "convex"
    alpha: float | None = None
    rerank: Rerank = "auto"
    mmr: float | None = None
    expand: Expand = "none"
    version: str | None = None
    min_seq: dict[str, int] | None = None
    deadline_s: float | None = None
    exact: bool = False
    explain: bool = False
    tenant: str | None = None

    def request(self) -> SearchRequest:
        """Return the query; the tenant is the caller's, whatever the body says."""
        values = self.model_dump(exclude={"tenant", "filter"})
        return SearchRequest(**values, filter=None if self.filter is None else parse_filter(self.filter))


class SearchBody(Body):
    """A batch of queries."""

    requests: list[SearchItem] = Field(min_length=1, max_length=256)


class PassagesBody(Body):
    """Chunks to show."""

    chunk_ids: list[str] = Field(max_length=1_000)


class RunBody(Body):
    """A question for a graph."""

    question: str
    graph: str = "rag"
    thread_id: str | None = Field(default=None, max_length=128)
    library: str | None = None
    document_ids: tuple[str, ...] = ()
    history: tuple[ChatTurn, ...] = ()
    budget: Budget | None = None


def api_router(graft: AsyncGraft, admission: Admission, config: ServerConfig) -> APIRouter:
    """Return the routes under /v1 that are Graft's own."""
    router = APIRouter(prefix="/v1")

    @router.get("/status")
    async def status() -> Any:
        return to_json(await graft.status())

    @router.post("/search")
    async def search(body: SearchBody) -> Any:
        requests = [item.request() for item in body.requests]
        return {"results": [to_json(result) for result in await graft.retriever.search(requests)]}

    @router.post("/passages")
    async def passages(body: PassagesBody) -> Any:
        return {"passages": [item and to_json(item) for item in await graft.passages(body.chunk_ids)]}

    @router.post("/ask")
    async def ask(request: Request, body: RunBody) -> Any:
        with admission:
            run = graft.pipeline(body.graph).invoke(**_run_arguments(body))
            result = await while_connected(request, run)
        if (failure := failure_of(result)) is not None:
            raise failure
        return answer_to_json(result)

    @router.post("/runs")
    async def runs(body: RunBody) -> StreamingResponse:
        stream = graft.pipeline(body.graph).stream(**_run_arguments(body))

        async def events() -> AsyncIterator[str]:
            async with aclosing(stream) as open_stream:  # pyright: ignore[reportArgumentType]
                async for event in open_stream:
                    yield sse(event_to_json(event))

        return event_stream(events(), admission)

    @router.get("/threads")
    async def threads(graph: str = "rag") -> Any:
        return {"threads": [to_json(item) for item in await graft.pipeline(graph).threads()]}

    @router.get("/threads/{thread_id}")
    async def thread(thread_id: str, graph: str = "rag") -> Any:
        return {"turns": [to_json(turn) for turn in await graft.pipeline(graph).history(thread_id)]}

    @router.delete("/threads/{thread_id}", status_code=204)
    async def delete_thread(thread_id: str, graph: str = "rag") -> None:
        await graft.pipeline(graph).delete_thread(thread_id)

    @router.get("/libraries")
    async def libraries() -> Any:
        return {"libraries": [to_json(item) for item in await graft.libraries()]}

    @router.get("/documents")
    async def documents(library: str | None = None) -> Any:
        return {"documents": [to_json(item) for item in await graft.documents(library)]}

    @router.post("/documents", status_code=202)
    async def add(
        request: Request, name: str, library: str = Query(DEFAULT_LIBRARY), metadata: str | None = None
    ) -> Any:
        fields = None if metadata is None else metadata_of(metadata)
        data = await _read_body(request, config.max_upload_bytes, f"file {name!r}")
        return to_json(await graft.add(name, data, library=library, metadata=fields))

    @router.get("/documents/{document_id}")
    async def document(document_id: str) -> Any:
        return to_json(await graft.document(document_id))

    @router.get("/documents/{document_id}/text")
    async def text(document_id: str) -> Any:
        return to_json(await graft.text(document_id))

    @router.get("/documents/{document_id}/content")
    async def content(document_id: str) -> Response:
        # A document is data: it is never rendered by the browser under the platform's own origin.
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(
            await graft.content(document_id), media_type="application/octet-stream", headers=headers
        )

    @router.delete("/documents/{document_id}", status_code=204)
    async def delete(document_id: str) -> None:
        await graft.delete(document_id)

    @router.get("/generator")
    async def generator() -> Any:
        return {
            "info": to_json(await graft.generator.info()),
            "stats": to_json(await graft.generator.stats()),
        }

    @router.post("/tokens")
    async def tokens(prompt: Prompt) -> Any:
        return {"num_tokens": await graft.generator.count_tokens(prompt)}

    @router.post("/generate")
    async def generate(request: GenerateRequest) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            async with aclosing(graft.generator.generate(request)) as stream:  # pyright: ignore[reportArgumentType]
                async for chunk in stream:
                    yield sse(to_json(chunk))

        return event_stream(chunks(), admission)

    return router


def create_app(
    graft: AsyncGraft, access: Access, config: ServerConfig, drain: Drain | None = None
) -> FastAPI:
    """Return the application: API, health, metrics and the chat page.

    Args:
        graft: The platform it serves.
        access: Who may call.
        config: Limits.
        drain: Counts requests under way and refuses new ones at the end; None for one of its own.
    """
    from graft.openai_api import openai_router

    app = FastAPI(title="Graft", docs_url="/docs", redoc_url=None)
    admission = Admission(config.max_concurrent_runs)
    drain = drain or Drain()
    app.add_middleware(RequestSpans)  # inside the guard: who may not call does not join anybody's trace
    app.add_middleware(
        Guard,
        access=access,
        drain=drain,
        max_body_bytes=config.max_body_bytes,
        max_large_body_bytes=config.max_upload_bytes,
    )
    app.include_router(api_router(graft, admission, config))
    folders = (Path.home(), Path.cwd()) if config.ingest_folders is None else config.ingest_folders
    app.include_router(ingest_router(graft, admission, InPlace(access, folders)))
    app.include_router(index_router(graft))
    app.include_router(graph_router(graft))
    app.include_router(openai_router(graft, admission))

    @app.api_route(
        "/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    async def nowhere(path: str) -> None:
        # Without it the page mounted at `/` would answer, in HTML.
        raise HTTPException(404, f"Not Found: there is no /v1/{path}; see /docs for what there is")

    @app.get("/healthz")
    async def healthz() -> Response:
        status = await graft.status()
        told = "draining" if drain.has_begun else "ok" if status.healthy else "degraded"
        body = {"status": told, "parts": {p.name: p.state for p in status.parts}}
        return JSONResponse(body, status_code=200 if told == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(await graft.metrics())

    @app.get("/login")
    async def login(token: str = "") -> Response:
        access.tenant({"authorization": f"Bearer {token}", "host": "localhost"})
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(TOKEN_COOKIE, token, httponly=True, samesite="strict")
        return response

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    for root in OURS:
        app.add_exception_handler(root, ours)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        body = {"error": {"message": where, "type": "InvalidRequest", "param": None, "code": None}}
        return JSONResponse(body, status_code=400)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        body = {"error": {"message": error.detail, "type": "HTTPError", "param": None, "code": None}}
        return JSONResponse(body, status_code=error.status_code)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("request %s %s failed", request.method, request.url.path, exc_info=error)
        body = {
            "message": "internal error; see the platform's log",
            "type": "InternalError",
            "param": None,
            "code": None,
        }
        return JSONResponse({"error": body}, status_code=500)

    return app


def mount_ui(
    app: FastAPI, graft: AsyncGraft, access: Access, config: ServerConfig, drain: Drain | None = None
) -> FastAPI:
    """Mount the chat page at `/`; the API's own routes win over it."""
    import gradio

    from ui import build_app, mount

    def authorise(request: gradio.Request) -> None:
        access.tenant(dict(request.headers))

    blocks = build_app(graft, authorise, admission=drain or Drain())
    return mount(app, blocks, max_file_bytes=config.max_upload_bytes)


def _run_arguments(body: RunBody) -> dict[str, Any]:
    return {name: getattr(body, name) for name in RunBody.model_fields if name != "graph"}


async def _read_body(request: Request, limit: int, what: str) -> bytes:
    """Return the body, reading no more than the limit."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise InvalidDocument(
                f"{what} is larger than the limit of {limit:,} bytes; "
                "split it, or raise server.max_upload_bytes"
            )
    return bytes(data)
