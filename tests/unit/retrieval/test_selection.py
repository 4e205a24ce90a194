"""Selections against a plain-Python oracle: any filter, any change, any tenant, compacted or not."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidFilter
from retrieval.filters import And, Compare, Exists, Filter, In, Not, Or, type_of
from retrieval.shard.columns import Columns
from retrieval.shard.contents import Contents
from retrieval.shard.rows import RowTable
from retrieval.shard.selection import ChunkFilter, Selections
from retrieval.truth.stored import Changes, DocumentRows

COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBERS = st.sampled_from([-1, 0, 1, 1.5, 2, 1990])
TEXTS = st.sampled_from(["", "a", "b", "é", "z z"])
FIELDS = {
    "year": NUMBERS,
    "lang": TEXTS,
    "draft": st.booleans(),
    "tags": st.lists(TEXTS, max_size=3).map(tuple),
}


def _field_value(name: str) -> st.SearchStrategy:
    if name == "page":
        return st.sampled_from([0, 1, 2, 3])
    if name == "library":
        return st.sampled_from(["l0", "l1", "l2"])
    if name == "created_s":
        return st.sampled_from([0.0, 1.0, 2.0])
    return TEXTS if name == "tags" else FIELDS[name]


@st.composite
def _leaf(draw: st.DrawFn) -> Filter:
    name = draw(st.sampled_from([*FIELDS, "page", "library", "created_s", "nobody_has_it"]))
    if name == "nobody_has_it":
        return draw(st.sampled_from([Exists(name), Compare(name, "!=", 3), In(name, ("x",))]))
    value = _field_value(name)
    operators = ["==", "!="] if name == "draft" else list(COMPARE)
    return draw(
        st.one_of(
            st.builds(Compare, st.just(name), st.sampled_from(operators), value),
            st.builds(In, st.just(name), st.lists(value, min_size=1, max_size=3).map(tuple)),
            st.just(Exists(name)),
        )
    )


PREDICATES = st.recursive(
    _leaf(),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)
CHUNK_FILTERS = st.builds(
    ChunkFilter,
    st.sampled_from(["t0", "t1", "t2"]),
    st.sampled_from([None, "l0", "l1"]),
    st.sampled_from([(), ("d1",), ("d0", "d3", "gone")]),
    st.one_of(st.none(), PREDICATES),
)
PUTS = st.tuples(
    st.just("put"),
    st.integers(0, 7),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),  # Pages of its chunks.
    st.fixed_dictionaries({}, optional=FIELDS),
)
STEPS = st.one_of(
    PUTS,
    PUTS,
    st.tuples(st.just("remove"), st.integers(0, 7), st.just([]), st.just({})),
    st.tuples(st.just("fields"), st.integers(0, 7), st.just([]), st.fixed_dictionaries({}, optional=FIELDS)),
    st.tuples(st.just("compact"), st.just(0), st.just([]), st.just({})),
)


def _holds(predicate: Filter, values: dict) -> bool:
    """The definition of a predicate, one document at a time."""
    match predicate:
        case Not(operand):
            return not _holds(operand, values)
        case And(operands):
            return all(_holds(operand, values) for operand in operands)
        case Or(operands):
            return any(_holds(operand, values) for operand in operands)
        case Exists(name):
            return name in values
        case In(name, wanted):
            return any(_holds(Compare(name, "==", one), values) for one in wanted)
        case Compare(name, symbol, wanted):
            if name not in values:
                return False
            held = values[name]
            return any(COMPARE[symbol](one, wanted) for one in (held if isinstance(held, tuple) else (held,)))
    raise AssertionError(predicate)


@dataclass
class Oracle:
    """The same documents as plain dictionaries."""

    documents: dict[str, DocumentRows] = field(default_factory=dict)
    next_row: int = 1
    seq: int = 0

    def step(self, kind: str, number: int, pages: list[int], metadata: dict) -> Changes | None:
        document_id = f"d{number}"
        self.seq += 1
        if kind == "remove":
            return Changes(self.seq, [document_id] if self.documents.pop(document_id, None) else [], [])
        if kind == "fields":
            old = self.documents.get(document_id)
            if old is None:
                return None
            rows = (old.row_ids, old.ordinals, old.pages, old.num_terms, old.vectors_ND)
        else:
            count = len(pages)
            rows = (
                np.arange(self.next_row, self.next_row + count),
                np.arange(count, dtype=np.int32),
                np.array(pages, dtype=np.int32),
                np.arange(count, dtype=np.int32),
                np.zeros((count, 2), dtype=np.float32),
            )
            self.next_row += count
        document = DocumentRows(
            document_id,
            f"t{number % 3}",
            f"l{number % 2}",
            f"{document_id}.txt",
            "text/plain",
            metadata,
            float(number % 3),
            float(self.seq),
            f"{self.next_row:064x}"[::-1],
            *rows,
        )
        self.documents[document_id] = document
        return Changes(self.seq, [], [document])

    def kept(self, chunks: ChunkFilter) -> set[int]:
        found = set()
        for document in self.documents.values():
            if document.tenant != chunks.tenant or chunks.library not in (None, document.library):
                continue
            if chunks.document_ids and document.document_id not in chunks.document_ids:
                continue
            for row_id, page in zip(document.row_ids.tolist(), document.pages.tolist(), strict=True):
                values = {**document.metadata, "library": document.library, "created_s": document.created_s}
                if page:
                    values["page"] = page
                if chunks.predicate is None or _holds(chunks.predicate, values):
                    found.add(row_id)
        return found


def _compacted(contents: Contents) -> Contents:
    arrays, codes = contents.rows.live_arrays()
    return Contents(RowTable(arrays), Columns(contents.columns.arrays(codes)), contents.seq)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25), st.lists(CHUNK_FILTERS, min_size=1, max_size=4))
def test_selections_follow_every_change_and_never_show_another_tenant(steps: list, filters: list) -> None:
    contents, oracle = Contents(), Oracle()
    selections = Selections(contents.rows, contents.columns)
    for step in [("put", 0, [1], {}), *steps]:
        if step[0] == "compact":
            contents = _compacted(contents)
            selections = Selections(contents.rows, contents.columns)
        else:
            changes = oracle.step(*step)
            if changes is not None:
                contents.apply(changes)
        for chunks in filters:
            selection = selections.get(chunks)
            keep_N = contents.rows.alive_N if selection.keep is None else selection.keep
            row_ids = contents.rows.row_ids_N[keep_N].tolist()
            assert set(row_ids) == oracle.kept(chunks)
            assert len(row_ids) == selection.count
            assert set(contents.columns.tenants(contents.rows.codes_N[keep_N])) <= {chunks.tenant}
            assert selections.get(chunks) is selection
        assert contents.rows.num_live == sum(len(one.row_ids) for one in oracle.documents.values())
        assert contents.rows.num_live_terms == sum(
            int(one.num_terms.sum()) for one in oracle.documents.values()
        )
        _check_names(contents, oracle)


def _check_names(contents: Contents, oracle: Oracle) -> None:
    """Every chunk is found under its public id, and no other id finds one."""
    for document in oracle.documents.values():
        for row_id, ordinal in zip(document.row_ids.tolist(), document.ordinals.tolist(), strict=True):
            chunk_id = f"{document.document_id}:{document.content_hash[:12]}:{ordinal}"
            position = contents.position_of(chunk_id)
            assert position is not None
            assert contents.rows.row_ids_N[position] == row_id
            assert contents.chunk_ids(np.array([position])) == [chunk_id]
            assert contents.rows.positions_by_row_id(np.array([row_id])).tolist() == [position]
        assert contents.position_of(f"{document.document_id}:{'0' * 12}:0") is None
        assert contents.position_of(f"{document.document_id}:{document.content_hash[:12]}:99") is None
    for wrong in ("", ":", "gone:abc:0", "d0", "d0::", "d0:x:y:z"):
        assert contents.position_of(wrong) is None


def test_deleted_documents_leave_no_words_in_a_segment() -> None:
    contents, oracle = Contents(), Oracle()
    contents.apply(oracle.step("put", 0, [0], {"lang": "secret", "tags": ("hidden", "kept")}))
    contents.apply(oracle.step("put", 1, [0], {"lang": "public", "tags": ("kept", "")}))
    contents.apply(oracle.step("remove", 0, [], {}))
    _, codes = contents.rows.live_arrays()
    stored = b"".join(array.tobytes() for array in contents.columns.arrays(codes).values())
    assert b"secret" not in stored
    assert b"hidden" not in stored
    assert b"d0" not in stored
    assert b"public" in stored


def test_wrong_types_are_refused_even_when_an_equal_filter_is_kept() -> None:
    contents, oracle = Contents(), Oracle()
    contents.apply(oracle.step("put", 0, [0], {"year": 1, "draft": True}))
    selections = Selections(contents.rows, contents.columns)
    assert selections.get(ChunkFilter("t0", predicate=Compare("year", "==", 1))).count == 1
    with pytest.raises(InvalidFilter, match="'year' holds a number"):
        selections.get(ChunkFilter("t0", predicate=Compare("year", "==", True)))
    assert selections.unknown_fields(ChunkFilter("t0", predicate=Exists("yaer"))) == {"yaer"}
    assert type_of(True) == "boolean"


def test_rows_that_do_not_ascend_are_refused() -> None:
    contents, oracle = Contents(), Oracle()
    contents.apply(oracle.step("put", 0, [0, 0], {}))
    oracle.next_row = 1
    with pytest.raises(ValueError, match="rows must ascend"):
        contents.apply(oracle.step("put", 1, [0], {}))
