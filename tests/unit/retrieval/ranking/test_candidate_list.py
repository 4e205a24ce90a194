"""Mixing a reranker's scores into the fused ones."""

from __future__ import annotations

import pytest

from retrieval.config import RetrievalConfig
from retrieval.ranking.candidate_list import CandidateList
from retrieval.reader import Candidates
from retrieval.types import SearchRequest

DENSE = {"a": 0.9, "b": 0.8, "c": 0.5, "d": 0.1}


def dense_list() -> CandidateList:
    """Return the candidates of a dense search: scores 1, 0.875, 0.5 and 0."""
    part = Candidates(dense=tuple(DENSE.items()), lexical=(), plan="exact", seq=1)
    return CandidateList(SearchRequest("q", mode="dense"), {"shard": part}, RetrievalConfig())


def test_a_reranker_that_finds_all_alike_within_its_span_shuffles_nothing() -> None:
    stretched, kept = dense_list(), dense_list()
    scores = {"a": 0.60, "b": 0.61, "c": 0.59}
    stretched.rerank(["a", "b", "c"], scores, 0.75)
    kept.rerank(["a", "b", "c"], scores, 0.75, 0.5)
    assert stretched.order[0] == "b"
    assert kept.order == ["a", "b", "c", "d"]


def test_a_span_gives_the_best_one_and_nothing_beyond_it() -> None:
    ranked = dense_list()
    ranked.rerank(["a", "b", "c"], {"a": 0.1, "b": 0.9, "c": 0.7}, 0.5, 0.4)
    assert ranked.score_of("b") == pytest.approx(0.5 * 0.875 + 0.5)
    assert ranked.score_of("c") == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)
    assert ranked.score_of("a") == pytest.approx(0.5 * 1.0)
    assert ranked.score_of("d") == 0.0


def test_without_a_span_the_worst_one_looked_at_has_nothing() -> None:
    ranked = dense_list()
    ranked.rerank(["a", "b", "c"], {"a": -3.0, "b": 5.0, "c": 1.0}, 0.5)
    assert ranked.score_of("a") == pytest.approx(0.5)
    assert ranked.score_of("b") == pytest.approx(0.5 * 0.875 + 0.5)
    assert ranked.score_of("c") == pytest.approx(0.5 * 0.5 + 0.25)
    equal = dense_list()
    equal.rerank(["a", "b"], {"a": 2.0, "b": 2.0}, 0.5)
    assert equal.order == ["a", "b", "c", "d"]


@pytest.mark.parametrize("span", [None, 0.01, 2.0])
def test_what_was_not_looked_at_stays_behind_and_what_cannot_be_scored_keeps_its_score(span) -> None:
    ranked = dense_list()
    ranked.rerank(["a", "b", "c"], {"b": 0.1, "c": 0.9}, 0.75, span)
    assert ranked.score_of("a") == pytest.approx(1.0)
    assert ranked.order[-1] == "d"
    assert all(0 <= ranked.score_of(name) <= 1 for name in DENSE)
