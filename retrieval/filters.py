"""Typed predicates over documents' metadata.

A predicate is true or false of a document. A comparison with a field the document does not have is false;
`Not` is the complement, so `Not(Compare("year", "==", 1990))` also keeps documents without a year. Every
document has the fields `document_id`, `name`, `library`, `media_type` (text), `created_s` and `updated_s`
(Unix time); `page` is a chunk's. All others are its own metadata.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from retrieval.errors import InvalidFilter

Operator = Literal["==", "!=", "<", "<=", ">", ">="]
Scalar = str | int | float | bool

FieldType = Literal["text", "number", "boolean", "texts"]
"""What a field holds in every document that has it; `texts` is several strings."""

BUILT_IN_FIELDS: Mapping[str, FieldType] = MappingProxyType(
    {
        "document_id": "text",
        "name": "text",
        "library": "text",
        "media_type": "text",
        "created_s": "number",
        "updated_s": "number",
        "page": "number",
    }
)
"""Fields every document has without being given any; metadata cannot use these names."""

MAX_NODES = 10_000
"""Most comparisons and listed values of one predicate."""
MAX_DEPTH = 64
"""Deepest nesting of one predicate."""
MAX_INTEGER = 2**53
"""Larger whole numbers are not exact where numbers are kept."""


@dataclass(frozen=True, slots=True)
class Compare:
    """A field compared with a value of its type; for a field of several strings, any of them."""

    field: str
    """Name of the field."""
    operator: Operator
    """The comparison."""
    value: Scalar
    """What it is compared with."""


@dataclass(frozen=True, slots=True)
class In:
    """A field equal to one of several values."""

    field: str
    """Name of the field."""
    values: tuple[Scalar, ...]
    """The values; at least one."""


@dataclass(frozen=True, slots=True)
class Exists:
    """A field that is there."""

    field: str
    """Name of the field."""


@dataclass(frozen=True, slots=True)
class Not:
    """The complement of a predicate."""

    operand: Filter
    """What must not hold."""


@dataclass(frozen=True, slots=True)
class And:
    """All of several predicates."""

    operands: tuple[Filter, ...]
    """At least one."""


@dataclass(frozen=True, slots=True)
class Or:
    """Any of several predicates."""

    operands: tuple[Filter, ...]
    """At least one."""


Filter = Compare | In | Exists | Not | And | Or


def fields_of(predicate: Filter) -> frozenset[str]:
    """Return the names of the fields a predicate compares."""
    return frozenset(node.field for node in _nodes(predicate) if isinstance(node, Compare | In | Exists))


def check_shape(predicate: Filter) -> None:
    """Check what can be checked without knowing the fields' types.

    Raises:
        InvalidFilter: It is not a predicate, is empty somewhere, too large, or compares with NaN.
    """
    size = 0
    for node in _nodes(predicate):
        size += 1
        match node:
            case And(operands) | Or(operands):
                if not operands:
                    raise InvalidFilter(
                        f"'{type(node).__name__.lower()}' needs at least one predicate; got none"
                    )
            case Compare(name, operator, value):
                if operator not in get_args(Operator):
                    known = ", ".join(get_args(Operator))
                    raise InvalidFilter(f"field '{name}': unknown operator {operator!r}; use one of {known}")
                _check_value(name, value)
            case In(name, values):
                if not values:
                    raise InvalidFilter(f"field '{name}': 'in' needs at least one value; got none")
                size += len(values)
                for value in values:
                    _check_value(name, value)
            case _:
                pass
        if size > MAX_NODES:
            raise InvalidFilter(
                f"the filter has more than {MAX_NODES:,} comparisons and values; narrow it, or search a "
                "library or documents by id instead"
            )


def check_types(predicate: Filter, fields: Mapping[str, FieldType]) -> None:
    """Check every comparison with a known field; a field that is not in `fields` is left alone.

    Raises:
        InvalidFilter: A field is compared with a value of another type, or in a way its type has not.
    """
    for node in _nodes(predicate):
        if not isinstance(node, Compare | In):
            continue
        field_type = fields.get(node.field)
        if field_type is None:
            continue
        wanted = "text" if field_type == "texts" else field_type
        for value in node.values if isinstance(node, In) else (node.value,):
            if type_of(value) != wanted:
                raise InvalidFilter(
                    f"field '{node.field}' holds {_HOLDS[field_type]}; it cannot be compared with {value!r}, "
                    f"a {type_of(value)}"
                )
        if field_type == "boolean" and isinstance(node, Compare) and node.operator not in ("==", "!="):
            raise InvalidFilter(
                f"field '{node.field}' holds true or false, which have no order; compare it with == or !=, "
                f"not {node.operator}"
            )


def check_known(predicate: Filter, fields: Mapping[str, FieldType]) -> None:
    """Check that every field a predicate names exists somewhere in the collection.

    Raises:
        InvalidFilter: One does not; the message lists those that do.
    """
    unknown = sorted(fields_of(predicate) - fields.keys())
    if unknown:
        known = sorted(fields)
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise InvalidFilter(
            f"no document has a field '{unknown[0]}'{hint}; known fields: "
            + ", ".join(f"{name} ({fields[name]})" for name in known)
        )


def type_of(value: Scalar) -> FieldType:
    """Return the type of a field that holds this value."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


_HOLDS: dict[FieldType, str] = {
    "text": "a text",
    "number": "a number",
    "boolean": "true or false",
    "texts": "several texts",
}


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str | int | float | bool):
        raise InvalidFilter(
            f"field '{name}': cannot compare with {value!r} ({type(value).__name__}); "
            "use a text, a number, true or false"
        )
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise InvalidFilter(f"field '{name}': a whole number above 2**53 equals no stored one")
    if isinstance(value, float) and math.isnan(value):
        raise InvalidFilter(
            f"field '{name}': NaN equals nothing; use 'exists' to ask whether a field is there"
        )


def _nodes(predicate: Filter, depth: int = 0) -> Iterator[Filter]:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested deeper than {MAX_DEPTH}; flatten its and/or/not")
    if not isinstance(predicate, Filter):
        raise InvalidFilter(
            f"{predicate!r} is not a predicate; use Compare, In, Exists, Not, And, Or or parse_filter"
        )
    yield predicate
    match predicate:
        case And(operands) | Or(operands):
            for operand in operands:
                yield from _nodes(operand, depth + 1)
        case Not(operand):
            yield from _nodes(operand, depth + 1)
        case _:
            pass
