"""The smoke evaluation: 60 questions over the sample library, gold spans included."""

from __future__ import annotations

import re

import pytest

from benchmarks.samples import load_questions, outcomes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def seen(platform):
    return list(outcomes(platform, load_questions()))


def test_gold_spans_stand_in_the_documents_as_read(platform):
    documents = {item.name: item.document_id for item in platform.documents("samples")}
    for question in load_questions():
        if question.document is not None:
            text = squeezed(platform.text(documents[question.document]).text)
            assert squeezed(question.quote) in text, question.id
            assert question.answer in question.quote, question.id


def test_retrieval_finds_the_gold_document(seen):
    answerable = [item for item in seen if item.question.answer is not None]
    found = [item for item in answerable if item.rank is not None]
    assert len(found) >= 0.95 * len(answerable), [
        item.question.id for item in answerable if item.rank is None
    ]


def test_every_run_ends_answered_or_abstained_with_exact_quotes(platform, seen):
    texts = {item.document_id: platform.text(item.document_id).text for item in platform.documents("samples")}
    for item in seen:
        assert item.result.stop_reason in ("answered", "abstained"), (item.question.id, item.result.error)
        for citation in item.result.citations:
            assert citation.quote == texts[citation.document_id][citation.start : citation.end]


def test_few_answers_are_wrong(seen):
    wrong = [item.question.id for item in seen if item.verdict == "wrong"]
    assert len(wrong) <= 0.25 * len(seen), wrong


def test_most_answers_are_given_or_quoted(seen):
    answerable = [item for item in seen if item.question.answer is not None]
    shown = [item for item in answerable if item.verdict in ("correct", "quoted")]
    assert len(shown) >= 0.5 * len(answerable)
