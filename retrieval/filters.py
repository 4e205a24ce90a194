"""Typed predicates over documents' metadata.

A predicate is true or false of a document. A comparison with a field the document does not have is false;
`Not` is the complement, so `Not(Compare("year", "==", 1990))` also keeps documents without a year. Every
document has the fields `document_id`, `name`, `library`, `media_type` (text), `created_s` and `updated_s`
(Unix time); `page` is a chunk's. All others are its own metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["==", "!=", "<", "<=", ">", ">="]
Scalar = str | int | float | bool


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
