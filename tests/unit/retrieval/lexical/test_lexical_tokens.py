"""Terms are folded, stemmed words, the same in chunks and queries; identifiers stay whole."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.lexical import MAX_TERM_CHARS, STOP_WORDS, query_terms, terms_of


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Running runners RAN", ["run", "runner", "ran"]),
        ("naïve ÉCOLE", ["naiv", "ecol"]),
        ("Fuß FUSS", ["fuss", "fuss"]),
        ("the ﬁnding", ["the", "find"]),
        ("cell's don't they\u2019re d'or", ["cell", "don", "they", "d", "or"]),
        ("block_size=16", ["block_size", "block", "size", "16"]),
        ("__init__ _ gpt4", ["__init__", "init", "_", "gpt4"]),
        ("bm25s x²", ["bm25s", "x2"]),
        ("한국어 Москва", ["한국어", "москва"]),
        ("?! \n\x00", []),
    ],
)
def test_words_are_folded_stemmed_and_identifiers_kept(text: str, terms: list[str]) -> None:
    assert terms_of(text) == terms


def test_stop_words_leave_a_query_unless_alone() -> None:
    assert query_terms("What is the KV cache?", 9) == ["kv", "cach"]
    assert query_terms("who is it", 9) == ["who", "is", "it"]
    assert "the" in STOP_WORDS
    assert terms_of("The Who") == ["the", "who"]


def test_query_terms_are_distinct_ordered_and_bounded() -> None:
    assert query_terms("b1 a1 b1 cats cat c1 d1", 4) == ["b1", "a1", "cat", "c1"]
    assert query_terms("?!,", 3) == []


def test_a_very_long_word_is_cut() -> None:
    assert terms_of("Q" * 1_000_000) == ["q" * MAX_TERM_CHARS]


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_makes_terms_a_query_finds_again(text: str) -> None:
    terms = terms_of(text)
    for term in terms:
        assert term
        assert " " not in term
        assert "\n" not in term
        assert term.encode()
    assert set(query_terms(text, 1000)) <= set(terms)
    assert bool(query_terms(text, 1000)) == bool(terms)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_full_text_delta_counts_the_same_terms(text: str) -> None:
    """FTS5 must part the joined terms exactly where we joined them."""
    db = sqlite3.connect(":memory:")
    try:
        db.execute("CREATE VIRTUAL TABLE f USING fts5(terms, tokenize=\"ascii tokenchars '_'\")")
        db.execute("CREATE VIRTUAL TABLE v USING fts5vocab(f, 'instance')")
        terms = terms_of(text)
        db.execute("INSERT INTO f VALUES (?)", (" ".join(terms),))
        assert sorted(row[0] for row in db.execute("SELECT term FROM v")) == sorted(terms)
    finally:
        db.close()


def test_threads_stem_alike() -> None:
    texts = [f"generalisations relational {n} hopping conditional" * 20 for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(terms_of, texts)) == [terms_of(text) for text in texts]
