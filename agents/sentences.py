"""Where the sentences of a text stand: prose, hard-wrapped PDF lines, headings, lists and table rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from agents.words import word_set

MAX_SENTENCE_CHARS = 480
"""Longer stretches without a boundary (logs, base64, unpunctuated text) are cut at a space."""

_WRAP_CHARS = 40
"""A line shorter than this that ends without punctuation is a title of its own, not a wrapped line."""

LineKind = Literal["text", "heading", "row"]

_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_ITEM = re.compile(r"\s*(?:[-*+•‣·]|\d{1,3}[.)])\s+")
_RULE = re.compile(r"[\s|:+=*_~-]*$")
_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019\u00bb)\]]*(?=\s)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*"
)
_LAST_WORD = re.compile(r"([^\s(\[\"'“]*)$")
_ABBREVIATION_CHARS = 16
_ABBREVIATIONS = word_set(
    "mr mrs ms dr prof st vs e.g i.e cf ca approx fig figs eq eqs sec no nos vol al jr sr inc ltd co corp "
    "gen col rev hon gov sen rep lt sgt capt u.s u.k a.m p.m b.c a.d ph.d jan feb mar apr jun jul aug sep "
    "sept oct nov dec pp ch ed eds dept univ est etc resp"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A stretch of a text that reads as one statement. `text[start:end]` has no outer white space."""

    start: int
    """Offset of its first character."""
    end: int
    """Offset after its last character."""
    kind: LineKind
    """Prose, a heading, or a row of a table."""
    block: int
    """Number of the paragraph, list item or row it belongs to."""


def _is_abbreviation(text: str, start: int, stop: int) -> bool:
    found = _LAST_WORD.search(text[max(start, stop - _ABBREVIATION_CHARS) : stop])
    word = found.group(1) if found else ""
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word.isupper())


def _blocks(text: str) -> list[tuple[int, int, LineKind]]:
    """Return (start, end, kind) of paragraphs, headings, list items and rows."""
    blocks: list[tuple[int, int, LineKind]] = []
    is_open = False
    position = 0
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        body = line.rstrip()
        end = start + len(body)
        if not body or _RULE.match(body):
            is_open = False
            continue
        if _HEADING.match(body):
            blocks.append((start, end, "heading"))
            is_open = False
            continue
        if body.count("|") >= 2 or "\t" in body.strip():
            blocks.append((start, end, "row"))
            is_open = False
            continue
        item = _ITEM.match(body)
        if is_open and not item:
            blocks[-1] = (blocks[-1][0], end, "text")
        else:
            blocks.append((start + (item.end() if item else 0), end, "text"))
        is_open = len(body) >= _WRAP_CHARS
    return blocks


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans = []
    while end - start > MAX_SENTENCE_CHARS:
        space = text.rfind(" ", start + MAX_SENTENCE_CHARS // 2, start + MAX_SENTENCE_CHARS)
        stop = space if space > start else start + MAX_SENTENCE_CHARS
        spans.append((start, stop))
        start = stop
    spans.append((start, end))
    return spans


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def sentences(text: str) -> list[Sentence]:
    """Return the sentences of a text in order; they never overlap."""
    found: list[Sentence] = []
    for number, (block_start, block_end, kind) in enumerate(_blocks(text)):
        bounds = [block_start]
        if kind == "text":
            bounds += [
                match.end()
                for match in _END.finditer(text, block_start, block_end)
                if match.group()[0] != "." or not _is_abbreviation(text, block_start, match.start())
            ]
        bounds.append(block_end)
        for left, right in pairwise(bounds):
            for start, end in _cut(text, left, right):
                start, end = _trim(text, start, end)
                if start < end:
                    found.append(Sentence(start, end, kind, number))
    return found
