"""The sample library is complete, and every question's evidence stands in its document."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import docx
import pypdfium2
import pytest

from sample_library import build

LIBRARY = Path(__file__).resolve().parents[2] / "sample_library"
DOCUMENTS = LIBRARY / "documents"
NAMES = sorted(path.name for path in DOCUMENTS.iterdir())
QUESTIONS: list[dict[str, str | None]] = [
    json.loads(line) for line in (LIBRARY / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
ANSWERABLE = [question for question in QUESTIONS if question["answer"] is not None]
UNANSWERABLE = [question for question in QUESTIONS if question["answer"] is None]


class _Text(HTMLParser):
    """Collects the text between the tags of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def _pages(path: Path) -> list[str]:
    with pypdfium2.PdfDocument(path) as pdf:
        return [page.get_textpage().get_text_range() for page in pdf]


@cache
def _text(name: str) -> str:
    """Returns a document's text with every run of white space replaced by one space."""
    path = DOCUMENTS / name
    match path.suffix:
        case ".md" | ".txt":
            text = path.read_text(encoding="utf-8")
        case ".html":
            parser = _Text()
            parser.feed(path.read_text(encoding="utf-8"))
            text = "".join(parser.parts)
        case ".docx":
            text = "\n".join(paragraph.text for paragraph in docx.Document(str(path)).paragraphs)
        case ".pdf":
            text = "\n".join(_pages(path))
        case suffix:
            raise AssertionError(f"{name}: no way to read {suffix}")
    return " ".join(text.split())


def test_documents_come_in_five_formats() -> None:
    formats = Counter(Path(name).suffix for name in NAMES)
    assert formats == {".md": 31, ".txt": 4, ".html": 4, ".docx": 3, ".pdf": 2}


@pytest.mark.parametrize("name", NAMES)
def test_document_is_short_plain_and_named_in_kebab_case(name: str) -> None:
    text = _text(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z]+", name)
    assert 250 <= len(text.split()) <= 700
    assert text.isascii(), "plain ASCII reads the same through every reader"


@pytest.mark.parametrize("name", build.PDF_NAMES)
def test_pdf_has_pages_that_each_hold_text(name: str) -> None:
    pages = _pages(DOCUMENTS / f"{name}.pdf")
    assert 2 <= len(pages) <= 3
    assert all(len(page.split()) > 100 for page in pages)


def test_question_ids_and_texts_are_unique() -> None:
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS) == 60
    assert len({question["question"] for question in QUESTIONS}) == 60


def test_ten_questions_have_no_answer_and_name_no_document() -> None:
    assert len(UNANSWERABLE) == 10
    assert all(question["document"] is None and question["quote"] is None for question in UNANSWERABLE)


def test_every_document_answers_a_question() -> None:
    assert {question["document"] for question in ANSWERABLE} == set(NAMES)


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question["id"])
def test_answer_is_in_quote_and_quote_is_once_in_its_document_alone(question: dict[str, str]) -> None:
    quote = " ".join(question["quote"].split())
    assert quote == question["quote"]
    assert question["answer"] in quote
    assert _text(question["document"]).count(quote) == 1
    assert [name for name in NAMES if quote in _text(name)] == [question["document"]]


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question["id"])
def test_question_does_not_copy_its_evidence(question: dict[str, str]) -> None:
    asked = re.findall(r"[a-z0-9.%-]+", question["question"].lower())
    evidence = " ".join(re.findall(r"[a-z0-9.%-]+", question["quote"].lower()))
    copied = [asked[i : i + 6] for i in range(len(asked) - 5) if " ".join(asked[i : i + 6]) in evidence]
    assert not copied, "six words in a row are the document's own"
    assert question["answer"].lower() not in question["question"].lower()


def _content(path: Path) -> object:
    """Returns a file's bytes, or for a DOCX its entries, which do not depend on the zlib that packed them."""
    if path.suffix != ".docx":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, entry.date_time, archive.read(entry)) for entry in archive.infolist()]


def test_built_documents_match_their_sources(tmp_path: Path) -> None:
    for path in build.build(tmp_path):
        assert _content(path) == _content(DOCUMENTS / path.name), (
            f"{path.name} differs from its source: run `python -m sample_library.build` and commit the result"
        )


def test_build_is_the_same_twice(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        build.build(folder)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()
