"""How values and errors travel over HTTP: the one place that knows both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import fields as fields_of
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from agents.errors import AgentError, InvalidQuestion, InvalidThread, UnknownGraph, UnknownThread
from agents.events import EVENT_TYPES, RunEvent
from agents.state import Citation, RunResult
from graft.errors import AccessDenied, ConfigError, GraftError, NotInPlace, RemoteError, ShuttingDown
from retrieval.errors import (
    GraphDisabled,
    IndexOverloaded,
    IndexUnavailable,
    IngestTimeout,
    InvalidDocument,
    InvalidFilter,
    InvalidMetadata,
    InvalidSearch,
    InvalidVector,
    InvalidVersion,
    RetrievalError,
    StorageFull,
    UnknownDocument,
    UnknownVersion,
)
from retrieval.filter_parsing import filter_json
from retrieval.types import Metadata, SearchRequest
from serving.errors import (
    GeneratorUnavailable,
    InvalidGeneration,
    ModelUnusable,
    Overloaded,
    PromptTooLong,
    ServingError,
)
from training.errors import TrainingError

T = TypeVar("T")

STATUS: dict[type[Exception], int] = {
    AccessDenied: 401,
    ConfigError: 400,
    NotInPlace: 409,
    InvalidSearch: 400,
    InvalidFilter: 400,
    InvalidQuestion: 400,
    InvalidThread: 400,
    InvalidGeneration: 400,
    PromptTooLong: 400,
    InvalidDocument: 422,
    InvalidMetadata: 422,
    InvalidVector: 422,
    InvalidVersion: 409,
    GraphDisabled: 409,
    UnknownDocument: 404,
    UnknownVersion: 404,
    UnknownGraph: 404,
    UnknownThread: 404,
    Overloaded: 429,
    IndexOverloaded: 429,
    ShuttingDown: 503,
    GeneratorUnavailable: 503,
    ModelUnusable: 503,
    IndexUnavailable: 503,
    IngestTimeout: 504,
    StorageFull: 507,
}
"""HTTP status of every error with a class of its own; other errors of ours are 500."""

BUSY = (Overloaded, IndexOverloaded, ShuttingDown)
"""Errors that say when to come back."""

OURS = (GraftError, RetrievalError, ServingError, AgentError, TrainingError)
"""Roots of every error raised on purpose."""


@cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def to_json(value: Any) -> Any:
    """Return a dataclass value as plain JSON types."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_json(cls: type[T], data: Any) -> T:
    """Return a dataclass value from JSON types; pydantic's `ValidationError` names what does not fit."""
    return _adapter(cls).validate_python(data)


def search_to_json(request: SearchRequest) -> dict[str, Any]:
    """Return a query as `/v1/search` takes it; the tenant is left out, the caller's token decides it."""
    body = {item.name: getattr(request, item.name) for item in fields_of(request) if item.name != "tenant"}
    return {**body, "filter": request.filter and filter_json(request.filter)}


def metadata_of(text: str) -> Metadata:
    """Return the metadata that a JSON object in text describes.

    Raises:
        InvalidMetadata: It is no JSON object; the store checks names and types.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InvalidMetadata(f"metadata is not valid JSON ({error}); send an object of fields") from error
    if not isinstance(fields, dict):
        raise InvalidMetadata(f"metadata must be a JSON object of fields; got {text[:80]}")
    return metadata_from_json(fields)


def metadata_from_json(fields: Mapping[str, Any]) -> Metadata:
    """Return metadata from a JSON object; the store checks names and types."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def event_from_json(data: Mapping[str, Any]) -> RunEvent:
    """Return the event a platform sent."""
    content = dict(data)
    return from_json(EVENT_TYPES[content.pop("type")], content)  # pyright: ignore[reportReturnType]


def event_to_json(event: RunEvent) -> dict[str, Any]:
    """Return an event as plain JSON types, `type` included."""
    return {"type": event.type, **to_json(event)}


def citation_to_json(citation: Citation) -> dict[str, Any]:
    """Return a citation as `graft ask --json` and the API show it."""
    return asdict(citation)


def answer_to_json(result: RunResult) -> dict[str, Any]:
    """Return a result as `graft ask --json` prints it."""
    return {
        "answer": result.answer,
        "citations": [citation_to_json(citation) for citation in result.citations],
        "stop_reason": result.stop_reason,
        "timings_ms": {name: round(value, 1) for name, value in result.timings_ms.items()},
        "release": result.release,
        "run_id": result.run_id,
        "thread_id": result.thread_id,
        "usage": asdict(result.usage),
        "error": result.error,
    }


def failure_of(result: RunResult) -> Exception | None:
    """Return the error that ended a run, as the class it was raised as; None for every other ending."""
    if result.stop_reason != "error":
        return None
    body = {"type": result.error_kind, "message": result.error, "retry_after_s": result.retry_after_s or 1.0}
    return error_from_json({"error": body}, 500)


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error of ours."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def error_to_json(error: Exception) -> dict[str, Any]:
    """Return an error in the shape OpenAI's clients read, with our class name as `type`."""
    body: dict[str, Any] = {"message": str(error), "type": type(error).__name__, "param": None, "code": None}
    if isinstance(error, BUSY):
        body["retry_after_s"] = error.retry_after_s
    return {"error": body}


def error_from_json(data: Any, status: int) -> Exception:
    """Return the error a platform answered with, as the class it was raised as."""
    body = data.get("error") if isinstance(data, dict) else None
    if not isinstance(body, dict):
        return RemoteError(f"the platform answered {status} without a message", status)
    message = str(body.get("message"))
    name = body.get("type")
    for busy in BUSY:
        if name == busy.__name__:
            return busy(message, float(body.get("retry_after_s", 1.0)))
    cls = next((cls for cls in STATUS if cls.__name__ == name), None)
    return cls(message) if cls else RemoteError(message, status)
