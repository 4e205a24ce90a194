"""The bounds of a search request."""

from __future__ import annotations

import math

import pytest

from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidFilter, InvalidSearch
from retrieval.filters import And, Compare
from retrieval.requests import check_searches
from retrieval.types import SearchRequest


def check(**fields) -> None:
    check_searches([SearchRequest("x", **fields)], RetrievalConfig())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fusion": "sum"}, "fusion must be one of convex, rrf; got 'sum'"),
        ({"rerank": "best"}, "rerank must be one of auto, none, maxsim, cross_encoder"),
        ({"rerank": "cross_encoder"}, "set cross_encoder to a folder"),
        ({"expand": "all"}, "expand must be one of none, parent, neighbours"),
        ({"alpha": 1.5}, "alpha must be a number from 0 to 1; got 1.5"),
        ({"alpha": math.nan}, "alpha must be a number"),
        ({"alpha": True}, "alpha must be a number"),
        ({"mmr": -0.1}, "mmr must be a number from 0 to 1"),
        ({"mmr": "half"}, "mmr must be a number"),
        ({"deadline_s": 0}, "deadline_s is 0"),
        ({"deadline_s": -1}, "deadline_s must be a number from 0 to 3600"),
        ({"deadline_s": math.inf}, "deadline_s must be a number"),
        ({"version": " "}, "version is empty"),
        ({"min_seq": {"shard-0": -1}}, "min_seq of 'shard-0' must be a log position"),
        ({"min_seq": {"shard-0": 1.5}}, "pass on what upsert returned"),
        ({"k": 2.0}, "k must be from 1 to 1,000"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_remedy(fields, says) -> None:
    with pytest.raises(InvalidSearch) as refused:
        check(**fields)
    assert says in str(refused.value)


def test_a_malformed_filter_is_refused() -> None:
    with pytest.raises(InvalidFilter):
        check(filter=And(()))
    with pytest.raises(InvalidFilter):
        check(filter="year > 2000")


def test_every_option_within_its_bounds_passes() -> None:
    check(
        filter=Compare("year", ">", 2000), fusion="rrf", alpha=0, rerank="maxsim", mmr=1.0, expand="parent",
        version="stable", min_seq={"shard-0": 0}, deadline_s=0.1, exact=True, explain=True,
    )  # fmt: skip
