"""Base and delta over a real store find the same as one base of everything."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from retrieval.lexical import Bm25, LexicalBase, LexicalBuilder, LexicalSegments, query_terms, terms_of
from retrieval.truth.records import Vectors
from retrieval.truth.store import Store, document_id_of
from retrieval.types import Record
from retrieval.versions import VersionSpec

SPEC = VersionSpec("packaged", "hash8", 4, 180, 20, 2000)
TEXTS = [
    "The KV cache of block_size 16 grows with vLLM-0.32",
    "Cached blocks, caching and caches: c++ and f-strings don't matter",
    "naïve Bayes at the École; the \ufb01nding's Fuß",
    "AND OR NOT NEAR operators are words; so is __init__",
    "Ein Text über Bäume. 한국어 Москва",
    "the cache of the cache of the cache",
]


def upsert(store: Store, names_texts: list[tuple[str, str]]) -> None:
    records = [Record(name, text) for name, text in names_texts]
    vectors = Vectors(np.tile(np.eye(4, dtype=np.float32)[0], (len(records), 1)))
    store.upsert("t", "l", records, {store.version().number: vectors})


def built(folder: Path, rows: list[list[str]]) -> LexicalBase:
    builder = LexicalBuilder(folder)
    for position, terms in enumerate(rows):
        builder.add(position, terms)
    builder.finish(len(rows))
    return LexicalBase(folder)


def test_delta_in_the_store_scores_as_a_base_does(tmp_path: Path) -> None:
    store = Store(tmp_path / "shard")
    number = store.configure(SPEC).number
    upsert(store, [(f"d{n}", text) for n, text in enumerate(TEXTS)])
    parameters = Bm25(0.9, 0.6)
    rows = [terms_of(text) for text in TEXTS]
    whole = LexicalSegments(parameters, built(tmp_path / "whole", rows), 10)
    row_ids = np.arange(1, len(TEXTS) + 1)
    lengths = np.array([len(terms) for terms in rows])
    for num_base in (0, 2, 5):
        base = built(tmp_path / str(num_base), rows[:num_base])
        parts = LexicalSegments(parameters, base, num_base)
        parts.add(row_ids[num_base:], lengths[num_base:])
        with store.snapshot() as snapshot:
            read = partial(snapshot.delta_terms, number)
            for query in (
                "block_size cache",
                "finding Fuss",
                "and or not near",
                "c++",
                "Bäume москва 한국어",
            ):
                terms = query_terms(query, 64)
                assert parts.stats(terms, read) == whole.stats(terms, lambda after: [])
                wanted = whole.search(terms, 9, lambda after: [])
                found = parts.search(terms, 9, read)
                assert wanted[0].size
                assert np.array_equal(found[0], wanted[0])
                assert np.array_equal(found[1], wanted[1])
    store.close()


def test_a_deleted_row_is_neither_found_nor_counted(tmp_path: Path) -> None:
    store = Store(tmp_path / "shard")
    number = store.configure(SPEC).number
    upsert(store, [(f"d{n}", text) for n, text in enumerate(TEXTS)])
    segments = LexicalSegments(Bm25(0.9, 0.6))
    rows = [terms_of(text) for text in TEXTS]
    segments.add(np.arange(1, len(rows) + 1), np.array([len(terms) for terms in rows]))
    store.delete(document_id_of("t", "l", "d5"), "t")
    segments.remove(np.array([5]))
    with store.snapshot() as snapshot:
        read = partial(snapshot.delta_terms, number)
        assert segments.stats(["cach"], read).chunks_with == {"cach": 2}
        assert sorted(segments.search(["cach"], 9, read)[1].tolist()) == [0, 1]
    store.close()
