"""The OpenAI-compatible endpoint: `graft/<graph>` answers with retrieval, the bare model id without it.

A streamed `graft/<graph>` answer is sent once its citations are aligned, because text that turns out to be
unsupported could not be unsaid; comments keep the connection alive meanwhile. The bare model streams as it
generates.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from agents.events import RunFinished, Token
from agents.state import ChatTurn, RunResult
from graft.admission import Admission, event_stream, sse, while_connected
from graft.sdk import AsyncGraft
from graft.wire import answer_to_json, failure_of
from serving.errors import InvalidGeneration
from serving.prompt import Turn, chat_prompt
from serving.types import AdapterHost, Constraint, GeneratedChunk, GenerateRequest, Sampling, TokenUsage

PREFIX = "graft/"
"""Model ids of graphs start with this."""


class TextPart(BaseModel):
    """A text part of a message; other kinds are refused."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """Return the content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """A schema that the answer must follow."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    of: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    """The same in vLLM's words, and more."""

    model_config = ConfigDict(extra="forbid")
    choice: list[str] | None = None
    regex: str | None = None
    json_: dict[str, Any] | str | None = Field(None, alias="json")


class ChatBody(BaseModel):
    """The request; parameters that a local model has no use for are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


def openai_router(graft: AsyncGraft, admission: Admission) -> APIRouter:
    """Return /v1/models and /v1/chat/completions."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Any:
        return {
            "object": "list",
            "data": [
                {"id": i, "object": "model", "created": 0, "owned_by": "graft"}
                for i in await _model_ids(graft)
            ],
        }

    @router.post("/chat/completions", response_model=None)
    async def completions(request: Request, body: ChatBody) -> Any:
        if body.model.startswith(PREFIX):
            return await _graph(graft, admission, request, body)
        if body.model == (await graft.generator.info()).model_id:
            return await _bare(graft, admission, request, body, None)
        known = await _model_ids(graft)
        if body.model not in known:
            raise InvalidGeneration(f"unknown model {body.model!r}; this platform has: {', '.join(known)}")
        return await _bare(graft, admission, request, body, body.model)

    return router


async def _model_ids(graft: AsyncGraft) -> list[str]:
    """Return the graphs, the model, and the adapters that are loaded for it."""
    generator = graft.generator
    adapters = await generator.adapters() if isinstance(generator, AdapterHost) else []
    return [
        *(PREFIX + name for name in graft.graphs()),
        (await generator.info()).model_id,
        *(info.adapter_id for info in adapters),
    ]


async def _graph(graft: AsyncGraft, admission: Admission, request: Request, body: ChatBody) -> Any:
    if _constraint(body) is not None:
        raise InvalidGeneration(
            f"{body.model} answers with cited sentences; ask the model without '{PREFIX}' for another form"
        )
    pipeline = graft.pipeline(body.model.removeprefix(PREFIX))
    *earlier, last = [
        message for message in body.messages if message.role in ("user", "assistant")
    ] or body.messages
    if last.role != "user":
        raise InvalidGeneration("the last message must be the user's question")
    history = [ChatTurn("user" if m.role == "user" else "assistant", m.text) for m in earlier]
    frame = _Frame(body.model)
    if not body.stream:
        with admission:
            result = await while_connected(request, pipeline.invoke(last.text, history=history))
        if (failure := failure_of(result)) is not None:
            raise failure
        message = {"role": "assistant", "content": result.answer, "annotations": _annotations(result)}
        return frame.whole(message, _finish(result), result.usage) | {"graft": answer_to_json(result)}

    async def lines() -> AsyncIterator[str]:
        yield frame.line({"role": "assistant", "content": ""})
        async with aclosing(pipeline.stream(last.text, history=history)) as events:  # pyright: ignore
            async for event in events:
                if isinstance(event, Token):
                    yield ": writing\n\n"
                if isinstance(event, RunFinished):
                    result = event.result
                    if (failure := failure_of(result)) is not None:
                        raise failure
                    for piece in result.answer.splitlines(keepends=True):
                        yield frame.line({"content": piece})
                    delta = {"annotations": _annotations(result)}
                    yield frame.line(delta, _finish(result), graft=answer_to_json(result))
                    if body.stream_options and body.stream_options.include_usage:
                        yield frame.usage_line(result.usage)
        yield "data: [DONE]\n\n"

    return event_stream(lines(), admission)


async def _bare(
    graft: AsyncGraft, admission: Admission, request: Request, body: ChatBody, adapter: str | None
) -> Any:
    prompt = chat_prompt([_turn(message) for message in body.messages])
    wanted = GenerateRequest(prompt, _sampling(body), adapter=adapter)
    frame = _Frame(body.model)
    if not body.stream:
        with admission:
            text, end = await while_connected(request, _whole(graft, wanted))
        finish = "length" if end.finish_reason == "length" else "stop"
        return frame.whole({"role": "assistant", "content": text}, finish, end.usage or TokenUsage())

    async def lines() -> AsyncIterator[str]:
        yield frame.line({"role": "assistant", "content": ""})
        async with aclosing(graft.generator.generate(wanted)) as chunks:  # pyright: ignore
            async for chunk in chunks:
                finish = chunk.finish_reason and ("length" if chunk.finish_reason == "length" else "stop")
                yield frame.line({"content": chunk.text}, finish)
                if chunk.usage and body.stream_options and body.stream_options.include_usage:
                    yield frame.usage_line(chunk.usage)
        yield "data: [DONE]\n\n"

    return event_stream(lines(), admission)


async def _whole(graft: AsyncGraft, wanted: GenerateRequest) -> tuple[str, GeneratedChunk]:
    """Return all text of a generation and its last chunk."""
    text, end = "", GeneratedChunk("")
    async with aclosing(graft.generator.generate(wanted)) as chunks:  # pyright: ignore
        async for end in chunks:
            text += end.text
    return text, end


class _Frame:
    """Builds the objects of one completion, which share id, time and model."""

    def __init__(self, model: str) -> None:
        self.common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, message: dict[str, Any], finish: str, usage: TokenUsage) -> dict[str, Any]:
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return self.common | {"object": "chat.completion", "choices": [choice], "usage": _usage(usage)}

    def line(self, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return sse(self.common | {"object": "chat.completion.chunk", "choices": [choice]} | extra)

    def usage_line(self, usage: TokenUsage) -> str:
        chunk = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)}
        return sse(self.common | chunk)


def _constraint(body: ChatBody) -> Constraint | None:
    """Return the form that is asked for, or None for any.

    Raises:
        InvalidGeneration: Two are asked for, or a schema is missing.
    """
    found: list[Constraint] = []
    wanted, ours = body.response_format, body.structured_outputs
    try:
        if wanted is not None and wanted.type == "json_object":
            found.append(Constraint(json_schema='{"type": "object"}'))
        elif wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise InvalidGeneration("response_format.json_schema is missing; give {name, schema}")
            found.append(Constraint(json_schema=json.dumps(wanted.json_schema.of)))
        if ours is not None:
            schema = ours.json_ if isinstance(ours.json_, str | None) else json.dumps(ours.json_)
            found.append(Constraint(tuple(ours.choice or ()), ours.regex, schema))
    except ValueError as error:
        raise InvalidGeneration(f"structured_outputs: {error}") from error
    if len(found) > 1:
        raise InvalidGeneration("give response_format or structured_outputs, not both")
    return found[0] if found else None


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "blended_tokens": usage.blended_tokens,
            "repaired_tokens": usage.repaired_tokens,
        },
    }


def _finish(result: RunResult) -> str:
    return "length" if result.stop_reason in ("tokens", "deadline") else "stop"


def _annotations(result: RunResult) -> list[dict[str, Any]]:
    """Return citations in OpenAI's shape; the indices say where [n] stands in the answer."""
    found = []
    for citation in result.citations:
        mark = f"[{citation.number}]"
        start = result.answer.find(mark)
        if start < 0:
            continue
        title = citation.document + (f", page {citation.page}" if citation.page else "")
        url = f"/v1/documents/{citation.document_id}/text#{citation.start}-{citation.end}"
        place = {"start_index": start, "end_index": start + len(mark), "title": title, "url": url}
        found.append({"type": "url_citation", "url_citation": place})
    return found


def _turn(message: Message) -> Turn:
    return Turn("system" if message.role == "developer" else message.role, message.text)


def _sampling(body: ChatBody) -> Sampling:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        return Sampling(
            max_tokens=body.max_completion_tokens or body.max_tokens or 256,
            temperature=0.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            stop=stop,
            seed=body.seed,
            constraint=_constraint(body),
        )
    except ValueError as error:
        raise InvalidGeneration(str(error)) from error
