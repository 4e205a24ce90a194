"""Predicates: both written forms, their errors, and what they may compare."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InvalidFilter
from retrieval.filter_parsing import filter_json, parse_filter
from retrieval.filters import (
    BUILT_IN_FIELDS,
    MAX_NODES,
    And,
    Compare,
    Exists,
    In,
    Not,
    Or,
    check_known,
    check_shape,
    check_types,
    fields_of,
)

TYPES = {**BUILT_IN_FIELDS, "year": "number", "lang": "text", "draft": "boolean", "tags": "texts"}


def _is(name: str) -> Compare:
    return Compare(name, "==", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year >= 1990", Compare("year", ">=", 1990)),
        ("1990 <= year", Compare("year", ">=", 1990)),
        ("year == -1.5", Compare("year", "==", -1.5)),
        ("draft", Compare("draft", "==", True)),
        ("draft == false", Compare("draft", "==", False)),
        ("draft == False", Compare("draft", "==", False)),
        ("not draft", Not(Compare("draft", "==", True))),
        ('lang in ("en", "de")', In("lang", ("en", "de"))),
        ('lang not in ["en"]', Not(In("lang", ("en",)))),
        ("exists(year)", Exists("year")),
        ('exists("odd name")', Exists("odd name")),
        ('field("a.b-c") != "x"', Compare("a.b-c", "!=", "x")),
        ("1990 <= year < 2000", And((Compare("year", ">=", 1990), Compare("year", "<", 2000)))),
        (
            'year >= 1990 and lang in ("en","de") and not draft',
            And(
                (
                    Compare("year", ">=", 1990),
                    In("lang", ("en", "de")),
                    Not(Compare("draft", "==", True)),
                )
            ),
        ),
        ("a or b and c", Or((_is("a"), And((_is("b"), _is("c")))))),
    ],
)  # fmt: skip
def test_text_reads_as_it_looks(text: str, expected: object) -> None:
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("year >= )", "cannot be read at character 9"),
        ("year is 3", "use =="),
        ("__import__('os').system('true')", "is no predicate"),
        ("year == (lambda: 1)()", "is no constant"),
        ("year == other", "is no constant"),
        ("year == None", "is no constant"),
        ("year == 1j", "is no constant"),
        ("lang in x", "values in brackets"),
        ("3 in (1, 2)", "values in brackets"),
        ("lang in ()", "at least one value"),
        ("1 == 1", "names no field"),
        ("year + 1 == 2", "names no field"),
        ("exists(3)", "named by a text"),
        ("year == 1; draft", "cannot be read"),
        ("(" * 5000 + "a" + ")" * 5000, "brackets"),
        ("not " * 5000 + "a", "nested"),
        ("a and " * 40_000 + "b", "above 100,000"),
    ],
)
def test_text_that_is_no_predicate_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidFilter, match=re.escape(message)):
        parse_filter(text)


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("a filter was run"))
    for text in ("__import__('os').system('x') == 1", "[x for x in ()] == 1", "f'{year}' == 1"):
        with pytest.raises(InvalidFilter):
            parse_filter(text)


@pytest.mark.parametrize(
    ("given_json", "message"),
    [
        ([], "is a JSON object"),
        ({}, "got none"),
        ({"field": "year", "op": ">="}, "has the keys field, op, value"),
        ({"field": "year", "op": "~", "value": 1}, "field 'year': unknown op '~'"),
        ({"field": "", "op": "==", "value": 1}, "text that is not empty"),
        ({"field": "year", "op": "==", "value": None}, "field 'year': cannot compare with None"),
        ({"field": "year", "op": "==", "value": {"a": 1}}, "cannot compare with"),
        ({"field": "year", "op": "==", "value": float("nan")}, "NaN equals nothing"),
        ({"field": "year", "op": "==", "value": 2**60}, "above 2**53"),
        ({"field": "lang", "in": "en"}, "takes a list of values"),
        ({"field": "lang", "in": []}, "at least one value"),
        ({"and": {}}, "takes a list of predicates"),
        ({"and": []}, "needs at least one predicate"),
        ({"and": [1]}, "is a JSON object"),
        ({"not": "a"}, "is a JSON object"),
        ({"exists": 3}, "named by a text"),
    ],
)
def test_json_that_is_no_predicate_is_refused(given_json: object, message: str) -> None:
    with pytest.raises(InvalidFilter, match=re.escape(message)):
        parse_filter(given_json)  # pyright: ignore[reportArgumentType]


def test_broken_and_bottomless_json_is_refused() -> None:
    with pytest.raises(InvalidFilter, match="not valid JSON"):
        parse_filter('{"field": ')
    with pytest.raises(InvalidFilter, match=r"deep|nested|JSON"):
        parse_filter('{"not":' * 100_000)
    with pytest.raises(InvalidFilter, match="nested deeper than 64"):
        parse_filter('{"not":' * 70 + '{"exists": "a"}' + "}" * 70)


def test_too_many_values_are_refused() -> None:
    with pytest.raises(InvalidFilter, match="more than 10,000"):
        check_shape(In("a", tuple(range(MAX_NODES))))


_names = st.sampled_from(["year", "lang", "draft", "tags", "page"])
_scalars = st.one_of(
    st.text(max_size=5),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
)
_leaves = st.one_of(
    st.builds(Compare, _names, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), _scalars),
    st.builds(In, _names, st.lists(_scalars, min_size=1, max_size=4).map(tuple)),
    st.builds(Exists, _names),
)
_filters = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)  # fmt: skip


@given(_filters)
def test_json_form_gives_the_predicate_back(predicate: object) -> None:
    text = json.dumps(filter_json(predicate))  # pyright: ignore[reportArgumentType]
    assert parse_filter(text) == predicate
    assert parse_filter(json.loads(text)) == predicate


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (Compare("year", "==", "1990"), "field 'year' holds a number; it cannot be compared with '1990'"),
        (Compare("year", "==", True), "cannot be compared with True, a boolean"),
        (Compare("draft", "==", 1), "field 'draft' holds true or false"),
        (Compare("draft", "<", True), "have no order"),
        (Compare("lang", "==", 3), "field 'lang' holds a text"),
        (In("tags", ("a", 3)), "field 'tags' holds several texts"),
        (Not(And((Exists("year"), Compare("page", "<", "3")))), "field 'page' holds a number"),
    ],
)  # fmt: skip
def test_wrong_types_are_named(predicate: object, message: str) -> None:
    with pytest.raises(InvalidFilter, match=re.escape(message)):
        check_types(predicate, TYPES)  # pyright: ignore[reportArgumentType]


def test_right_types_pass_and_unknown_fields_are_left_to_check_known() -> None:
    predicate = And((Compare("tags", "==", "a"), Compare("yaer", ">", 3), Compare("draft", "!=", True)))
    check_types(predicate, TYPES)
    assert fields_of(predicate) == {"tags", "yaer", "draft"}
    with pytest.raises(
        InvalidFilter, match=r"no document has a field 'yaer' \(did you mean 'year'\?\).*lang \(text\)"
    ):
        check_known(predicate, TYPES)


def test_what_is_no_predicate_is_refused() -> None:
    for wrong in ("year > 3", None, {"exists": "a"}, And(("a",))):  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidFilter, match="is not a predicate"):
            check_shape(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidFilter, match="unknown operator '='"):
        check_shape(Compare("a", "=", 1))  # pyright: ignore[reportArgumentType]
