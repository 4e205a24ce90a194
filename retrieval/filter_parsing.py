"""Predicates as they arrive: JSON values, or one line of text such as `year >= 1990 and not draft`.

JSON: `{"field": "year", "op": ">=", "value": 1990}`, `{"field": "lang", "in": ["en", "de"]}`,
`{"exists": "year"}`, `{"not": P}`, `{"and": [P, ...]}`, `{"or": [P, ...]}`.

Text is Python's expression grammar, of which only `and`, `or`, `not`, the six comparisons, `in`, `not in`,
`exists(field)` and constants are read; nothing is ever evaluated. A bare name is `name == true`, and
`1990 <= year < 2000` reads as it looks. `field("odd name")` names a field that is not an identifier.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import cast

from retrieval.errors import InvalidFilter
from retrieval.filters import And, Compare, Exists, Filter, In, Not, Operator, Or, Scalar, check_shape

MAX_CHARS = 100_000
"""Longest filter as text."""

_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_MIRRORED: dict[Operator, Operator] = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_MAX_NESTING = 200
_SYNTAX = (
    'write for example: year >= 1990 and lang in ("en", "de") and not draft. Known are and, or, not, in, '
    "==, !=, <, <=, >, >=, exists(field)"
)


def parse_filter(given: str | Mapping[str, object]) -> Filter:
    """Return the predicate that a line of text or a JSON object describes.

    Raises:
        InvalidFilter: It is malformed; the message shows the part and how to write it.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = cast("Mapping[str, object]", json.loads(given))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidFilter(f"the filter is not valid JSON ({error})") from error
    try:
        predicate = _of_text(given) if isinstance(given, str) else _of_json(given)
    except RecursionError as error:
        raise InvalidFilter("the filter is nested too deep; flatten its and/or/not") from error
    check_shape(predicate)
    return predicate


def filter_json(predicate: Filter) -> dict[str, object]:
    """Return the JSON form of a predicate; `parse_filter` gives the predicate back."""
    match predicate:
        case Compare(name, operator, value):
            return {"field": name, "op": operator, "value": value}
        case In(name, values):
            return {"field": name, "in": list(values)}
        case Exists(name):
            return {"exists": name}
        case Not(operand):
            return {"not": filter_json(operand)}
        case And(operands):
            return {"and": [filter_json(operand) for operand in operands]}
        case Or(operands):
            return {"or": [filter_json(operand) for operand in operands]}


def _of_json(given: object) -> Filter:
    if not isinstance(given, Mapping):
        raise InvalidFilter(f"a predicate is a JSON object such as {_EXAMPLE}; got {_shown(given)}")
    entries = cast("Mapping[str, object]", given)
    match sorted(entries):
        case ["and"] | ["or"]:
            ((word, operands),) = entries.items()
            if not isinstance(operands, Sequence) or isinstance(operands, str):
                raise InvalidFilter(f"'{word}' takes a list of predicates; got {_shown(operands)}")
            parsed = tuple(_of_json(operand) for operand in cast("Sequence[object]", operands))
            return And(parsed) if word == "and" else Or(parsed)
        case ["not"]:
            return Not(_of_json(entries["not"]))
        case ["exists"]:
            return Exists(_name(entries["exists"]))
        case ["field", "in"]:
            return _of_values(_name(entries["field"]), entries["in"])
        case ["field", "op", "value"]:
            name, operator, value = _name(entries["field"]), entries["op"], entries["value"]
            if operator == "in":
                return _of_values(name, value)
            if operator not in _MIRRORED:
                raise InvalidFilter(
                    f"field '{name}': unknown op {_shown(operator)}; use one of {', '.join(_MIRRORED)}, in"
                )
            return Compare(name, cast("Operator", operator), cast("Scalar", value))
        case keys:
            raise InvalidFilter(
                f"a predicate has the keys field, op, value; or field, in; or one of and, or, not, exists; "
                f"got {', '.join(map(str, keys)) or 'none'} in {_shown(given)}"
            )


def _of_values(name: str, values: object) -> In:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidFilter(f"field '{name}': 'in' takes a list of values; got {_shown(values)}")
    return In(name, tuple(cast("Sequence[Scalar]", values)))


def _of_text(text: str) -> Filter:
    if len(text) > MAX_CHARS:
        raise InvalidFilter(f"the filter has {len(text):,} characters, above {MAX_CHARS:,}; shorten it")
    if max(map(text.count, "([")) > _MAX_NESTING:  # The parser's own stack must not be what ends it.
        raise InvalidFilter(f"the filter has more than {_MAX_NESTING} brackets; send it as JSON")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise InvalidFilter(f"the filter {_shown(text)} cannot be read{where}; {_SYNTAX}") from error
    return _of_node(tree.body)


def _of_node(node: ast.expr) -> Filter:
    match node:
        case ast.BoolOp(op, values):
            operands = tuple(_of_node(value) for value in values)
            return And(operands) if isinstance(op, ast.And) else Or(operands)
        case ast.UnaryOp(ast.Not(), operand):
            return Not(_of_node(operand))
        case ast.Compare(left, operators, others):
            sides = [left, *others]
            parts = [_of_pair(sides[i], op, sides[i + 1]) for i, op in enumerate(operators)]
            return parts[0] if len(parts) == 1 else And(tuple(parts))
        case ast.Call(ast.Name("exists"), [argument], []):
            return Exists(_field(argument) or _name(_constant(argument)))
        case _:
            name = _field(node)
            if name is None:
                raise InvalidFilter(f"'{ast.unparse(node)}' is no predicate; {_SYNTAX}")
            return Compare(name, "==", True)


def _of_pair(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Filter:
    if isinstance(operator, ast.In | ast.NotIn):
        name = _field(left)
        if name is None or not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise InvalidFilter(
                f'\'in\' takes a field and values in brackets, such as lang in ("en", "de"); '
                f"got {ast.unparse(left)} in {ast.unparse(right)}"
            )
        found = In(name, tuple(_constant(value) for value in right.elts))
        return found if isinstance(operator, ast.In) else Not(found)
    if type(operator) not in _OPERATORS:
        raise InvalidFilter(f"'is' compares nothing here, use == ; {_SYNTAX}")
    word = _OPERATORS[type(operator)]
    name = _field(left)
    if name is not None:
        return Compare(name, word, _constant(right))
    name = _field(right)
    if name is not None:
        return Compare(name, _MIRRORED[word], _constant(left))
    raise InvalidFilter(f"'{ast.unparse(left)} {word} {ast.unparse(right)}' names no field; {_SYNTAX}")


def _field(node: ast.expr) -> str | None:
    match node:
        case ast.Name(name) if name not in ("true", "false"):
            return name
        case ast.Call(ast.Name("field"), [ast.Constant(str(name))], []):
            return _name(name)
        case _:
            return None


def _constant(node: ast.expr) -> Scalar:
    match node:
        case ast.Constant(value) if isinstance(value, str | int | float | bool):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(value)) if type(value) in (int, float):
            return -cast("float", value)
        case ast.Name("true" | "false" as word):
            return word == "true"
        case _:
            raise InvalidFilter(
                f"'{ast.unparse(node)}' is no constant: compare a field with a text in quotes, a number, "
                "true or false"
            )


def _name(given: object) -> str:
    if not isinstance(given, str) or not given:
        raise InvalidFilter(f"a field is named by a text that is not empty; got {_shown(given)}")
    return given


def _shown(given: object) -> str:
    shown = repr(given)
    return shown if len(shown) <= 80 else shown[:77] + "..."


_EXAMPLE = '{"field": "year", "op": ">=", "value": 1990}'
