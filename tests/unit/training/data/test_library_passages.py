"""A library becomes passages under its records' names, and served passages find back to them."""

from __future__ import annotations

import pytest
from fakes_agents import passage

from retrieval.types import Record
from training.data import read_library, record_name, with_questions
from training.errors import DataError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


async def pages(*batches: list[Record]):
    for batch in batches:
        yield batch


async def test_records_become_passages_in_order():
    library = await read_library(
        pages([Record("a#0", "one"), Record("a#1", "two")], [Record("b", "three"), Record("c", " ")]), "lib"
    )
    assert [(one.passage_id, one.text, one.title) for one in library.passages] == [
        ("a#0", "one", ""),
        ("a#1", "two", ""),
        ("b", "three", ""),
    ]


async def test_library_without_text_or_with_a_name_twice_is_refused():
    with pytest.raises(DataError, match="holds no text"):
        await read_library(pages([]), "lib")
    with pytest.raises(DataError, match="record 'a' comes twice"):
        await read_library(pages([Record("a", "one")], [Record("a", "two")]), "lib")


def test_served_passage_is_known_by_its_record_name():
    known = {"a.md#2", "b.md"}
    assert record_name(passage("x", document="a.md", ordinal=2), known) == "a.md#2"
    assert record_name(passage("x", document="b.md"), known) == "b.md"
    assert record_name(passage("x", document="a.md", ordinal=3), known) is None


def test_label_outside_the_library_is_refused():
    library = TrainingSet("lib", (TrainingPassage("a", "one"),))
    inside = TrainingQuestion("q1", "what?", positive_ids=("a",))
    outside = TrainingQuestion("q2", "what else?", positive_ids=("z",))
    with pytest.raises(DataError, match="question 'q2' is labelled with passage 'z'"):
        with_questions(library, [inside, outside], "set")
    assert with_questions(library, [inside, outside], "set", faulty="drop").questions == (inside,)


async def test_exported_library_of_a_real_store_matches_its_hits(tmp_path):
    """Names from `export` and from hits agree, for documents of one chunk and of many."""
    from fakes_embedder import HashEmbedder

    from retrieval import LocalRetrieval, RetrievalConfig
    from training.data import RetrieverRanker, round_trip

    config = RetrievalConfig()
    async with await LocalRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
        long = "\n\n".join(f"Paragraph {n} tells of valve {n}. " + f"word{n} " * 150 for n in range(4))
        added = [
            await retrieval.add("long.txt", long.encode()),
            await retrieval.add("short.txt", b"A pump stands in the cellar."),
        ]
        await retrieval.wait_ready([one.document_id for one in added], timeout_s=60)
        library = await read_library(retrieval.export(batch=2), "lib")
        assert "short.txt" in {one.passage_id for one in library.passages}
        assert len(library.passages) > 2
        ranker = RetrieverRanker(retrieval, {one.passage_id for one in library.passages})
        questions = [
            TrainingQuestion(one.passage_id, one.text, positive_ids=(one.passage_id,))
            for one in library.passages
        ]
        assert await round_trip(questions, ranker, k=1) == tuple(questions)
