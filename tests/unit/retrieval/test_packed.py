from __future__ import annotations

import pickle

from retrieval.packed import pack, unpack
from retrieval.types import Hit, Passage, SearchResult

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
