"""Bounds of a request that its dataclasses do not know: beyond them the engine would be hurt."""

from __future__ import annotations

import re

from serving.errors import InvalidGeneration
from serving.types import Constraint, GenerateRequest

MAX_SEED = 2**63 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PRIORITY = 1_000_000
MAX_CHOICES = 1_000
MAX_CHOICE_CHARS = 1_000
MAX_REGEX_CHARS = 2_000
MAX_SCHEMA_CHARS = 50_000
MAX_REPEATS = 10_000

_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<low>\d{1,9}),?(?P<high>\d{1,9})?\}|.", re.DOTALL)
"""An escape, a class, a counted repeat, or any other character of a regex."""


def check_request(request: GenerateRequest) -> None:
    """Refuse values that pass the dataclasses' own checks but would hurt the engine.

    Raises:
        InvalidGeneration: A value is out of its bounds.
    """
    seed, stop = request.sampling.seed, request.sampling.stop
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidGeneration(f"seed must be in [0, {MAX_SEED}], got {seed}")
    if len(stop) > MAX_STOPS:
        raise InvalidGeneration(f"at most {MAX_STOPS} stop strings are allowed, got {len(stop)}")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise InvalidGeneration(
                f"a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}; shorten it"
            )
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidGeneration(f"priority must be within +-{MAX_PRIORITY}, got {request.priority}")
    if request.sampling.constraint is not None:
        _check_constraint(request.sampling.constraint)


def _check_constraint(constraint: Constraint) -> None:
    """Refuse what is large: a grammar's automaton can be far larger than its text."""
    if len(constraint.choices) > MAX_CHOICES:
        raise InvalidGeneration(
            f"a constraint may have {MAX_CHOICES:,} choices, got {len(constraint.choices):,}"
        )
    for choice in constraint.choices:
        if not 1 <= len(choice) <= MAX_CHOICE_CHARS:
            raise InvalidGeneration(
                f"a choice must have 1 to {MAX_CHOICE_CHARS:,} characters, got {len(choice):,}"
            )
    for name, text, limit in (
        ("regex", constraint.regex, MAX_REGEX_CHARS),
        ("json_schema", constraint.json_schema, MAX_SCHEMA_CHARS),
    ):
        if text is not None and not 1 <= len(text) <= limit:
            raise InvalidGeneration(
                f"constraint.{name} must have 1 to {limit:,} characters, got {len(text):,}; simplify it"
            )
    if constraint.regex is not None:
        _check_repeats(constraint.regex)


def _check_repeats(regex: str) -> None:
    """Refuse counted repeats that multiply: `((a{999}){999}){999}` is short and its automaton is not."""
    if _expanded(regex) > MAX_REPEATS:
        raise InvalidGeneration(
            f"constraint.regex comes to more than {MAX_REPEATS:,} characters with its counted repeats "
            "written out; use * or +, or cut the output by max_tokens"
        )


def _expanded(regex: str) -> int:
    """Return about how many characters and classes a regex has with counted repeats written out."""
    sizes, last = [0], 0
    for match in _PIECE.finditer(regex):
        piece = match[0]
        if piece == "(":
            sizes.append(0)
        elif piece == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            sizes[-1] += last
        elif match["low"] is not None:
            times = max(int(match["low"] or 0), int(match["high"] or 0), 1)
            sizes[-1] += last * (times - 1)
            last *= times
        else:
            last = 1
            sizes[-1] += 1
    return sum(sizes)
