"""The base holds exactly the postings it was given, at any block size, and loses dropped rows' words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.lexical import LexicalBase, LexicalBuilder

ROWS = st.lists(
    st.lists(st.sampled_from(["a", "b", "cd", "é", "москва", "w_1", "\U0001d4b3"]), max_size=12), max_size=12
)


def build(folder: Path, rows: list[list[str]], block_postings: int = 1000) -> LexicalBase:
    builder = LexicalBuilder(folder, block_postings)
    for position, terms in enumerate(rows):
        builder.add(position, terms)
    files = builder.finish(len(rows))
    assert {path.name for path in folder.iterdir()} == {path.name for path in files}
    return LexicalBase(folder)


def content(base: LexicalBase) -> dict[str, dict[int, int]]:
    terms = [base.term(number) for number in range(base.num_distinct)]
    assert terms == sorted(set(terms))
    return {term: dict(zip(*map(np.ndarray.tolist, base.postings(term)), strict=True)) for term in terms}


def expected(rows: list[list[str]]) -> dict[str, dict[int, int]]:
    postings: dict[str, dict[int, int]] = {}
    for position, terms in enumerate(rows):
        for term, count in Counter(terms).items():
            postings.setdefault(term, {})[position] = count
    return postings


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, block_postings=st.sampled_from([1, 3, 1000]))
def test_base_holds_what_was_added(tmp_path: Path, rows: list[list[str]], block_postings: int) -> None:
    base = build(tmp_path / "base", rows, block_postings)
    assert content(base) == expected(rows)
    assert base.lengths.tolist() == [len(terms) for terms in rows]
    assert base.num_rows == len(rows)
    assert base.postings("nowhere")[0].size == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, later=ROWS, data=st.data(), block_postings=st.sampled_from([1, 4, 1000]))
def test_compaction_equals_a_new_build(
    tmp_path: Path, rows: list[list[str]], later: list[list[str]], data: st.DataObject, block_postings: int
) -> None:
    dead = data.draw(st.sets(st.integers(0, max(len(rows) - 1, 0))))
    kept = [position for position in range(len(rows)) if position not in dead]
    old = build(tmp_path / "old", rows)
    new_positions = np.full(len(rows), -1)
    new_positions[kept] = np.arange(len(kept))
    builder = LexicalBuilder(tmp_path / "new", block_postings)
    builder.add_base(old, new_positions)
    for position, terms in enumerate(later):
        builder.add(len(kept) + position, terms)
    builder.finish(len(kept) + len(later))
    live = [rows[position] for position in kept] + later
    compacted = LexicalBase(tmp_path / "new")
    assert content(compacted) == expected(live)
    assert compacted.lengths.tolist() == [len(terms) for terms in live]


def test_words_of_dropped_rows_leave_the_files(tmp_path: Path) -> None:
    old = build(tmp_path / "old", [["secret", "plan"], ["plan"]])
    builder = LexicalBuilder(tmp_path / "new")
    builder.add_base(old, np.array([-1, 0]))
    files = builder.finish(1)
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_positions_left_out_are_empty_rows(tmp_path: Path) -> None:
    builder = LexicalBuilder(tmp_path)
    builder.add(2, ["a"])
    builder.finish(5)
    assert LexicalBase(tmp_path).lengths.tolist() == [0, 0, 1, 0, 0]


def test_positions_must_ascend(tmp_path: Path) -> None:
    builder = LexicalBuilder(tmp_path / "base")
    builder.add(1, ["a"])
    with pytest.raises(ValueError, match="positions must ascend: 1 comes after 1"):
        builder.add(1, ["b"])
    with pytest.raises(ValueError, match="new_positions must ascend"):
        builder.add_base(build(tmp_path / "old", [["a"], ["b"]]), np.array([1, 0]))


def test_a_frequency_beyond_16_bits_counts_as_the_largest(tmp_path: Path) -> None:
    base = build(tmp_path, [["a"] * 70_000])
    assert base.postings("a")[1].tolist() == [65_535]
    assert base.lengths.tolist() == [70_000]


def test_a_second_attempt_overwrites_a_broken_one(tmp_path: Path) -> None:
    LexicalBuilder(tmp_path / "base", 1).add(0, ["left", "over"])
    assert content(build(tmp_path / "base", [["new"]])) == {"new": {0: 1}}


@pytest.mark.parametrize("damage", ["truncate", "foreign", "missing", "mixed"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    build(tmp_path / "base", [["a", "b"], ["b"]])
    file = tmp_path / "base" / "positions.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "foreign":
        np.save(file, np.zeros(3))
    elif damage == "missing":
        file.unlink()
    else:
        build(tmp_path / "other", [["a", "b", "c"]])
        file = tmp_path / "base" / "terms.bin"
        file.write_bytes((tmp_path / "other" / "terms.bin").read_bytes())
    with pytest.raises((ValueError, OSError)):
        LexicalBase(tmp_path / "base")
