"""A library as passages, and the way back from a served passage to the id it has there."""

from __future__ import annotations

from collections.abc import AsyncIterable, Container, Iterable, Sequence

from retrieval.types import Passage, Record
from training.data.draft import Faulty, SetDraft
from training.errors import DataError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


async def read_library(pages: AsyncIterable[Sequence[Record]], name: str) -> TrainingSet:
    """Return the passages of an exported library, without questions.

    Args:
        pages: What `IndexAdmin.export` yields. `passage_id` is the record's name. There are no titles,
            because the index embeds a chunk's text alone.
        name: Name of the set, for logs and manifests.

    Raises:
        DataError: The library is empty, or two records have one name.
    """
    passages: dict[str, TrainingPassage] = {}
    async for records in pages:
        for record in records:
            if record.name in passages:
                raise DataError(f"{name}: record '{record.name}' comes twice; export one library at a time")
            if record.text.strip():
                passages[record.name] = TrainingPassage(record.name, record.text)
    if not passages:
        raise DataError(f"{name}: the library holds no text; add documents and wait until they are ready")
    return TrainingSet(name, tuple(passages.values()))


def with_questions(
    library: TrainingSet, questions: Iterable[TrainingQuestion], name: str, *, faulty: Faulty = "refuse"
) -> TrainingSet:
    """Return the library's passages with questions asked of them.

    Raises:
        DataError: Two questions have one id, there are none, or (`refuse`) a label is outside the library.
    """
    draft = SetDraft()
    for passage in library.passages:
        draft.add_passage(passage, library.name)
    for number, question in enumerate(questions, start=1):
        draft.add_question(question, f"{name}: question {number}")
    return draft.finish(name, faulty=faulty)


def record_name(passage: Passage, known: Container[str]) -> str | None:
    """Return the name that `IndexAdmin.export` gives a served passage; None where it is none of those known.

    A chunk of a document that has several is named `<document>#<ordinal>`, an only one as its document.
    """
    ordinal = passage.chunk_id.rpartition(":")[2]
    numbered = f"{passage.document}#{ordinal}"
    if numbered in known:
        return numbered
    return passage.document if passage.document in known else None
