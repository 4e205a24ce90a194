"""The lexical leg finds what it should on a public test collection."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

from retrieval.config import RetrievalConfig
from retrieval.lexical import Bm25, LexicalBase, LexicalBuilder, LexicalSegments, query_terms, terms_of


def lines(path: Path) -> list[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_scifact_claims_find_their_abstracts(data_folder: Path, tmp_path: Path) -> None:
    """Published BM25: 0.665 without and 0.679 with this kind of stemming."""
    corpus = lines(data_folder / "scifact" / "corpus.jsonl.xz")
    number_of = {str(document["_id"]): number for number, document in enumerate(corpus)}
    builder = LexicalBuilder(tmp_path)
    for number, document in enumerate(corpus):
        builder.add(number, terms_of(f"{document['title']} {document['text']}"))
    builder.finish(len(corpus))
    config = RetrievalConfig()
    segments = LexicalSegments(
        Bm25(config.bm25_k1, config.bm25_b), LexicalBase(tmp_path), base_row_id=len(corpus)
    )
    ndcgs = []
    for claim in lines(data_folder / "scifact" / "claims_dev.jsonl.xz"):
        relevant = {number_of[str(cited)] for cited in claim["cited_doc_ids"]}
        terms = query_terms(claim["claim"], config.max_query_terms)
        _, found = segments.search(terms, 10, lambda terms, after: {})
        gain = sum(1 / math.log2(rank + 2) for rank, at in enumerate(found.tolist()) if at in relevant)
        ndcgs.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant)))))
    assert len(ndcgs) == 300
    assert sum(ndcgs) / len(ndcgs) >= 0.66
