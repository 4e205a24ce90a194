"""Metadata: what can be stored, and that it comes back as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InvalidMetadata
from retrieval.truth.metadata import BUILT_IN_FIELDS, canonical, field_type, new_fields, parsed

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda name: name not in BUILT_IN_FIELDS
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = (
    TEXTS
    | st.integers(-(2**53), 2**53)
    | st.floats(-1e15, 1e15)
    | st.booleans()
    | st.lists(TEXTS, max_size=4).map(tuple)
)


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_metadata_come_back_as_they_were(metadata: dict) -> None:
    text = canonical(metadata)
    assert parsed(text) == metadata
    assert text == canonical(dict(reversed(metadata.items())))
    assert list(json.loads(text)) == sorted(metadata)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"": 1}, "must begin with a letter"),
        ({"1a": 1}, "must begin with a letter"),
        ({"a b": 1}, "must begin with a letter"),
        ({"x" * 65: 1}, "up to 64"),
        ({"tenant": "other"}, "every document has"),
        ({"a": None}, "NoneType cannot be stored"),
        ({"a": {"b": 1}}, "dict cannot be stored"),
        ({"a": [1, 2]}, "list cannot be stored"),
        ({"a": float("nan")}, "no finite number"),
        ({"a": 2**60}, "no finite number"),
        ({"a": "\ud800"}, "half a character"),
        ({"a": "x" * 40_000}, "above the limit of 32,768"),
        ({f"f{i}": i for i in range(65)}, "65 metadata fields"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(metadata: dict, says: str) -> None:
    with pytest.raises(InvalidMetadata, match=says):
        canonical(metadata)


def test_new_fields_have_one_type() -> None:
    assert new_fields([{"a": 1}, {"a": 2.5, "b": ["x"]}], {"c": "text"}) == {"a": "number", "b": "texts"}
    with pytest.raises(InvalidMetadata, match="'a' holds number"):
        new_fields([{"a": 1}, {"a": True}], {})
    with pytest.raises(InvalidMetadata, match="'c' holds text"):
        new_fields([{"c": ("x",)}], {"c": "text"})


def test_a_boolean_is_no_number() -> None:
    assert (field_type(True), field_type(1), field_type(1.0)) == ("boolean", "number", "number")
