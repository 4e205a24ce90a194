"""The lexical expression is only words; the fusion is the stated equation."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.ranking.fusion import convex_combination
from retrieval.lexical import STOP_WORDS, match_expression

SCORES = st.dictionaries(st.integers(0, 20), st.floats(0.001, 50, allow_nan=False), max_size=12)


@pytest.fixture(scope="module")
def fts() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE t USING fts5(text, tokenize='porter unicode61 remove_diacritics 2')"
    )
    connection.execute("INSERT INTO t VALUES ('the quick brown fox'), ('ein Fuß im Schnee'), ('foo_bar baz')")
    return connection


@settings(max_examples=300, deadline=None)
@given(query=st.text(max_size=80))
def test_any_text_makes_a_valid_expression(fts: sqlite3.Connection, query: str) -> None:
    match = match_expression(query, 8)
    if match is not None:
        assert match.count('"') <= 16
        fts.execute("SELECT rowid FROM t WHERE t MATCH ?", (match,)).fetchall()


def test_operators_and_columns_are_words() -> None:
    match = match_expression('fox NOT text:"x" AND NEAR(y)', 9)
    assert match == '"fox" OR "not" OR "text" OR "x" OR "near" OR "y"'


def test_function_words_are_left_out_unless_alone() -> None:
    assert match_expression("What is the KV cache?", 9) == '"kv" OR "cache"'
    assert match_expression("who is it", 9) == '"who" OR "is" OR "it"'
    assert "the" in STOP_WORDS


def test_terms_are_distinct_and_bounded() -> None:
    assert match_expression("a1 b1 a1 c1 d1", 3) == '"a1" OR "b1" OR "c1"'
    assert match_expression("?!,", 3) is None


def test_words_are_stemmed_and_folded_by_the_index(fts: sqlite3.Connection) -> None:
    for query, row in (("foxes", 1), ("fuß", 2), ("foo_bar", 3)):
        found = fts.execute("SELECT rowid FROM t WHERE t MATCH ?", (match_expression(query, 9),)).fetchall()
        assert found == [(row,)]


@given(dense=SCORES, lexical=SCORES, alpha=st.floats(0, 1))
def test_fused_scores_follow_the_equation(dense: dict, lexical: dict, alpha: float) -> None:
    fused = convex_combination(dense, lexical, alpha)
    assert set(fused) == set(dense) | set(lexical)
    weight = alpha if dense and lexical else float(bool(dense))
    for key, score in fused.items():
        expected = 0.0
        if key in dense:
            low, high = min(dense.values()), max(dense.values())
            expected += weight * ((dense[key] - low) / (high - low) if high > low else 1.0)
        if key in lexical:
            expected += (1 - weight) * lexical[key] / max(lexical.values())
        assert score == pytest.approx(expected)
        assert -1e-9 <= score <= 1 + 1e-9
