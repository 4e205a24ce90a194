"""Readers of the data folder: running text, glossaries, country profiles and human reading questions.

The folder is described by its own README; every file is xz-compressed and opened with `lzma`. Nothing
here ever opens a file meant for evaluation only (`squad2/dev`, `nq-gold/dev`, `clapnq-dev`, `multihop-mini`).
"""

from __future__ import annotations

import html
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataMissingError

BOOKS_FOLDERS = ("openstax", "openstax-more")
"""Folders of textbooks: one JSON line a module or paragraph."""

NOT_PROSE = ("glossary", "exercises", "docs-windows-driver-docs", "docs-powershell-docs")
"""Files of those folders that are not running text, or whose style is too repetitive to read from."""


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of running text on one subject."""

    title: str
    """Name of the module or book."""
    text: str
    """Plain text; paragraphs are separated by a blank line."""


@dataclass(frozen=True, slots=True)
class GlossaryEntry:
    """A term and what it means."""

    book: str
    """The book whose glossary holds it."""
    term: str
    """The term as printed."""
    definition: str
    """Its definition, without a final full stop."""


@dataclass(frozen=True, slots=True)
class HumanQuestion:
    """A question a person wrote about a passage."""

    question: str
    """The question as written."""
    answers: tuple[str, ...]
    """Acceptable answers that stand in the passage; empty when the passage does not hold one."""


@dataclass(frozen=True, slots=True)
class HumanPassage:
    """A passage with the questions people asked about it."""

    title: str
    """Title of the article."""
    text: str
    """The passage."""
    questions: tuple[HumanQuestion, ...]
    """In file order."""


def open_lines(path: Path) -> Iterator[str]:
    """Yield the lines of an xz-compressed UTF-8 file.

    Raises:
        DataMissingError: The file is not there.
    """
    if not path.is_file():
        raise DataMissingError(path)
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from lines


def _is_prose(path: Path) -> bool:
    return not path.name.startswith(NOT_PROSE)


def read_textbooks(data: Path) -> list[Page]:
    """Return one page per textbook module, paragraphs joined, in a fixed order."""
    pages: list[Page] = []
    for folder in BOOKS_FOLDERS:
        paths = sorted((data / folder).glob("*.jsonl.xz"))
        if not paths:
            raise DataMissingError(data / folder)
        for path in filter(_is_prose, paths):
            modules: dict[tuple[str, str], list[str]] = {}
            for line in open_lines(path):
                record = json.loads(line)
                modules.setdefault((record["module"], record["title"]), []).append(record["text"])
            pages += [Page(title, "\n\n".join(texts)) for (_, title), texts in modules.items()]
    return pages


def read_books(data: Path, *, max_books: int, max_chars: int) -> list[Page]:
    """Return the first `max_chars` characters of up to `max_books` public-domain books, in file order."""
    pages: list[Page] = []
    for line in open_lines(data / "classic-books" / "core-1885-1929.jsonl.xz"):
        if len(pages) == max_books:
            break
        record = json.loads(line)
        pages.append(Page(record["title"], record["text"][:max_chars]))
    return pages


def read_glossary(data: Path) -> list[GlossaryEntry]:
    """Return the glossary entries short enough to stand in a list (definition of 20-220 characters)."""
    entries: list[GlossaryEntry] = []
    for line in open_lines(data / "openstax-more" / "glossary.jsonl.xz"):
        record = json.loads(line)
        definition = record["definition"].rstrip(" .")
        if 20 <= len(definition) <= 220 and 3 <= len(record["term"]) <= 40 and "\n" not in definition:
            entries.append(GlossaryEntry(record["book"], record["term"], definition))
    return entries


_TAG = re.compile(r"<[^>]+>")
_SPACE = re.compile(r"\s+")


def _plain(text: str) -> str:
    return _SPACE.sub(" ", html.unescape(_TAG.sub(" ", text))).strip()


def _leaf_fields(section: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for raw_name, value in section.items():
        name = raw_name.strip()
        label = name if not prefix or name.lower().startswith(prefix.lower()) else f"{prefix} {name}"
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("text"), str):
            yield label, _plain(value["text"])
        else:
            yield from _leaf_fields(value, label)


def read_countries(data: Path) -> dict[str, dict[str, str]]:
    """Return country name -> field name -> value for the short fields (at most 90 characters)."""
    countries: dict[str, dict[str, str]] = {}
    for line in open_lines(data / "factbook" / "factbook.jsonl.xz"):
        profile = json.loads(line)["profile"]
        name_field = profile.get("Government", {}).get("Country name", {})
        name = _plain(name_field.get("conventional short form", {}).get("text", ""))
        if not 3 <= len(name) <= 40 or name == "none":
            continue
        fields = {
            field: value
            for section in profile.values()
            for field, value in _leaf_fields(section)
            if 1 <= len(value) <= 90 and len(field) <= 45 and "note" not in field.lower()
        }
        if len(fields) >= 12:
            countries[name] = fields
    return countries


def read_squad(path: Path) -> list[HumanPassage]:
    """Return the paragraphs of a SQuAD-format file, plain or xz-compressed; answers are distinct spans."""
    if not path.is_file():
        raise DataMissingError(path)
    raw = path.read_bytes()
    if path.suffix == ".xz":
        raw = lzma.decompress(raw)
    passages: list[HumanPassage] = []
    for article in json.loads(raw)["data"]:
        title = article.get("title", "").replace("_", " ")
        for paragraph in article["paragraphs"]:
            questions = tuple(
                HumanQuestion(
                    qa["question"].strip(), tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
                )
                for qa in paragraph["qas"]
            )
            passages.append(HumanPassage(title, paragraph["context"], questions))
    return passages


def read_nq(path: Path) -> list[HumanPassage]:
    """Return Natural Questions gold passages; only answers that stand in the passage are kept."""
    passages: list[HumanPassage] = []
    for line in open_lines(path):
        record = json.loads(line)
        gold = next(passage for passage in record["ctxs"] if passage["isgold"])
        answers = tuple(answer for answer in record["answers"] if answer and answer in gold["text"])
        if answers:
            question = HumanQuestion(record["question"], answers)
            passages.append(HumanPassage(gold["title"], gold["text"], (question,)))
    return passages
