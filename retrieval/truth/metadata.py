"""Typed metadata of documents: what a field may be called and hold, and how it is kept.

A field has one type in a shard, so that a filter can compare it: text, number (integers are numbers),
boolean, or texts (several strings).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from retrieval.errors import InvalidMetadata
from retrieval.types import Metadata, MetadataValue

BUILT_IN_FIELDS = frozenset(
    ("document_id", "name", "library", "media_type", "created_s", "updated_s", "page", "tenant")
)
"""Fields every document or chunk has; metadata cannot be called so."""

FIELD_TYPES = ("text", "number", "boolean", "texts")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MAX_FIELDS = 64
_MAX_JSON_CHARS = 32_768


def field_type(value: MetadataValue) -> str:
    """Return the type of a metadata value.

    Raises:
        InvalidMetadata: It is of no type that can be stored.
    """
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > 2**53:
            raise InvalidMetadata(f"{value!r} is no finite number up to 2**53; give it as text")
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return "texts"
    raise InvalidMetadata(
        f"a value of type {type(value).__name__} cannot be stored; give text, a number, true or false, or a "
        "list of texts"
    )


def canonical(metadata: Metadata) -> str:
    """Return metadata as JSON with sorted keys: equal metadata give equal text.

    Raises:
        InvalidMetadata: A name or a value cannot be stored.
    """
    if not metadata:
        return "{}"
    if len(metadata) > _MAX_FIELDS:
        raise InvalidMetadata(
            f"{len(metadata)} metadata fields, above the limit of {_MAX_FIELDS}; keep what you filter by"
        )
    for name, value in metadata.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidMetadata(
                f"metadata field {name!r} must begin with a letter or '_' and hold up to 64 letters, digits, "
                "'_', '.' and '-'"
            )
        if name in BUILT_IN_FIELDS:
            raise InvalidMetadata(f"metadata field {name!r} is one every document has; rename it")
        try:
            field_type(value)
        except InvalidMetadata as error:
            raise InvalidMetadata(f"metadata field {name!r}: {error}") from error
    text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMetadata(
            "metadata hold half a character (a lone surrogate); send valid Unicode"
        ) from error
    if len(text) > _MAX_JSON_CHARS:
        raise InvalidMetadata(
            f"metadata take {len(text):,} characters as JSON, above the limit of {_MAX_JSON_CHARS:,}; put "
            "long text into the document"
        )
    return text


def parsed(text: str) -> dict[str, MetadataValue]:
    """Return metadata from their JSON."""
    if text == "{}":
        return {}
    values: dict[str, Any] = json.loads(text)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def new_fields(metadatas: Iterable[Metadata], known: Mapping[str, str]) -> dict[str, str]:
    """Return the types of fields not yet `known`.

    Raises:
        InvalidMetadata: A value has another type than its field.
    """
    found: dict[str, str] = {}
    for metadata in metadatas:
        for name, value in metadata.items():
            kind = field_type(value)
            expected = known.get(name) or found.setdefault(name, kind)
            if kind != expected:
                raise InvalidMetadata(
                    f"metadata field {name!r} holds {expected} in this shard; got {value!r} ({kind}): "
                    "use one type, or another name"
                )
    return found
