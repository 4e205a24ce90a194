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

_REPEAT = re.compile(r"\{(\d{1,9}),?(\d{1,9})?\}")


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
    product = 1
    for match in _REPEAT.finditer(regex):
        product *= max(int(match[1] or 0), int(match[2] or 0), 1)
        if product > MAX_REPEATS:
            raise InvalidGeneration(
                f"the counted repeats of constraint.regex multiply to more than {MAX_REPEATS:,}; use * or +, "
                "or cut the output by max_tokens"
            )
