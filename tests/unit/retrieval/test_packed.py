from __future__ import annotations

import pickle
from dataclasses import replace

from retrieval.packed import pack, pack_passages, unpack, unpack_passages
from retrieval.types import Explanation, Hit, Passage, SearchResult, Stage

HIT = Hit("d:h:0", 0.75, 0, dense_score=0.5, lexical_score=None)
PASSAGE = Passage("d:h:0", "d", "paper.pdf", "default", "naïve 中文", 3, 11, page=2)


def test_results_survive_packing_and_a_pickle():
    results = [
        SearchResult(
            (HIT,), (PASSAGE,), "v1", 7, partial=True, missing_shards=("s1",), embed_ms=1.5, search_ms=2.5
        ),
        SearchResult((), (), "v1", 7),
    ]
    assert unpack(pickle.loads(pickle.dumps(pack(results)))) == results


def test_packed_results_hold_no_object_of_ours():
    packed = pickle.dumps(pack([SearchResult((HIT,), (PASSAGE,), "v1", 7)]))
    assert b"retrieval" not in packed


def test_stages_and_the_explanation_travel_too():
    told = Explanation("v1", 2, {"s0": "exact"}, {"s0": 7}, (("d:h:0", 0.5),), (("d:h:0", 3.0),), ("bread",))
    stages = (Stage("embed", 1.0), Stage("maxsim", 0.0, "time budget"))
    results = [SearchResult((HIT,), (PASSAGE,), "v1", 7, stages=stages, explanation=told)]
    packed = pickle.dumps(pack(results))
    assert b"retrieval" not in packed
    assert unpack(pickle.loads(packed)) == results


def test_a_grown_passage_stays_apart_from_its_own_chunk():
    grown = replace(PASSAGE, text="naïve 中文 and more", end=20)
    results = [SearchResult((HIT,), (passage,), "v1", 7) for passage in (PASSAGE, grown, PASSAGE)]
    packed = pack(results)
    assert packed[0][1][0] is packed[2][1][0]
    assert unpack(pickle.loads(pickle.dumps(packed))) == results


def test_passages_survive_packing_and_hold_no_object_of_ours():
    passages = {"d:h:0": PASSAGE, "d:h:1": replace(PASSAGE, chunk_id="d:h:1", page=None)}
    packed = pickle.dumps(pack_passages(passages))
    assert b"retrieval" not in packed
    assert unpack_passages(pickle.loads(packed)) == passages
