"""Sentences of a chunk and the names that stand in them.

A name is a run of capitalised words or identifiers (`PagedAttention`, `GPT-3`, `University of Washington`).
The first word of a sentence is capitalised anyway, so it counts only with evidence from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval.graph.names import HONORIFICS, STARTERS, is_no_name, name_part, unambiguous
from retrieval.graph.types import EntityKind
from retrieval.lexical import terms_of

MAX_SENTENCE_CHARS = 2000
"""Longer stretches without a full stop (tables, code) are cut."""
_END = re.compile(
    r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c(\[]?[A-Z0-9])|\n\s*\n|\n(?=\s*(?:[#*|>-]|\d+\.)\s)"
)
_MARKUP = re.compile(r"^[\s#>*|-]+")
_TOLD = re.compile(r"\b(?:titled|published|presented|paper|article|report|book|title) $")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|Dr|Mr|Mrs|Ms|Prof|Fig|No|et al|approx|Inc|St)|\b[A-Z])\.$"
)
_WORD = re.compile(r"\w+(?:[-'\u2019&.]\w+)*(?:\+\+)?")
_QUOTED = re.compile(r"[\"\u201c]([^\"\u201c\u201d\n]{8,200})[\"\u201d]")
_PARTICLES = frozenset({"de", "van", "von", "der", "da", "di", "del"})
_INNER_OF_VENUES = frozenset({"on", "in", "for", "and", "the"})
_BODIES = frozenset(
    {"University", "Institute", "Department", "School", "College", "Academy", "Bank", "Ministry", "Museum"}
)
_VENUES = frozenset(
    {"Transactions", "Conference", "Journal", "Workshop", "Symposium", "Proceedings", "Association"}
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence or heading."""

    text: str
    """Without markup around it."""
    is_heading: bool
    """Whether it is a heading or a short line of its own."""
    is_title: bool = False
    """Whether it is a heading of the first level."""


@dataclass(frozen=True, slots=True)
class Span:
    """A name in a sentence."""

    name: str
    start: int
    end: int
    kind: EntityKind


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """Return the sentences of a text in order."""
    found = []
    for piece in _pieces(text):
        heading = piece.lstrip().startswith("#")
        bare = _MARKUP.sub("", piece).strip()
        # Lines wrapped by the source are one sentence.
        bare = " ".join(bare.split())
        if bare:
            short = bare[-1] not in ".!?:;,)" and len(bare) <= 80
            title = piece.lstrip().startswith("# ")
            found.append(Sentence(bare[:MAX_SENTENCE_CHARS], heading or short, title))
    return found


def _pieces(text: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(text):
        if "\n" not in match.group() and _ABBREVIATION.search(
            text[max(start, match.start() - 8) : match.start()]
        ):
            continue
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


class NameFinder:
    """Finds names in the sentences of one chunk."""

    def __init__(self, chunk: Sequence[Sentence]) -> None:
        """Gather evidence: which capitalised words stand inside sentences, which stand lower-case."""
        self._inside: set[str] = set()
        lower: set[str] = set()
        first: dict[str, int] = {}
        for sentence in chunk:
            # Titles of works are capitalised throughout and say nothing about their words.
            words = _WORD.findall(_QUOTED.sub(" _ ", sentence.text))
            if sentence.is_title and len(words) == 1:
                self._inside.add(words[0])
            for position, word in enumerate(words):
                if not word[0].isupper():
                    lower.add(word)
                elif position:
                    if not sentence.is_heading:
                        self._inside.add(word)
                elif not sentence.is_heading:
                    first[word] = first.get(word, 0) + 1
        # A word that begins sentences again and again and never stands lower-case is a name.
        lower_terms = set(terms_of(" ".join(lower)))
        self._inside |= {
            word for word, count in first.items() if count >= 2 and lower_terms.isdisjoint(terms_of(word))
        }

    def spans(self, sentence: Sentence) -> list[Span]:
        """Return the names of a sentence in order, none within another."""
        found, titles = [], list(_titles(sentence.text))
        for run in self._runs(sentence, titles):
            span = self._span(run, sentence)
            if span is not None:
                found.append(span)
        return sorted([*found, *titles], key=lambda span: span.start)

    def _runs(self, sentence: Sentence, titles: Sequence[Span]) -> Iterator[list[_Word]]:
        """Yield runs of words that look like one name."""
        run: list[_Word] = []
        held: list[_Word] = []
        for match in _WORD.finditer(sentence.text):
            text, end = name_part(match.group())
            word = _Word(text, match.start(), match.start() + end)
            if any(title.start <= word.start < title.end for title in titles):
                word = _Word("", word.start, word.end)
            last = (held or run or [word])[-1]
            apart = last is not word and sentence.text[last.end : word.start] != " "
            if apart:
                if run:
                    yield run
                run, held = [], []
            if self._looks_like_name(word):
                run += [*held, word] if run else [word]
                held = []
            elif run and (self._joins(word.text, run) or (word.text == "the" and held)):
                held.append(word)
            else:
                if run:
                    yield run
                run, held = [], []
            if match.end() != word.end and run:
                yield run
                run, held = [], []
        if run:
            yield run

    @staticmethod
    def _looks_like_name(word: _Word) -> bool:
        return any(char.isupper() for char in word.text) and (len(word.text) > 1 or not word.text.isalpha())

    @staticmethod
    def _joins(text: str, run: Sequence[_Word]) -> bool:
        """Return whether a small word may stand inside a name that begins with `run`."""
        words = {word.text for word in run}
        if text == "of":
            # `Duke of York`, `City University of London`, but two names in `Yossi Matias of Google`.
            return len(run) == 1 or not words.isdisjoint(_BODIES | _VENUES)
        return text in _PARTICLES or (text in _INNER_OF_VENUES and not words.isdisjoint(_VENUES))

    def _span(self, run: list[_Word], sentence: Sentence) -> Span | None:
        if run[0].start == 0:
            run = self._without_opening(run)
        while run and (
            run[0].text.lower() in STARTERS or (len(run) > 1 and run[0].text.lower() in HONORIFICS)
        ):
            run = run[1:]
        lone = sentence.is_heading and len(run) == 1 and run[0].text not in self._inside
        if lone and not unambiguous(run[0].text):
            return None
        if not run or is_no_name([word.text for word in run]):
            return None
        name = sentence.text[run[0].start : run[-1].end]
        acronym = len(run) == 1 and unambiguous(name)
        return Span(name, run[0].start, run[-1].end, "acronym" if acronym else "name")

    def _without_opening(self, run: list[_Word]) -> list[_Word]:
        """Drop the first word of a sentence, unless something says that it is part of a name."""
        opening = run[0].text
        if opening.lower() in STARTERS:
            return run[1:]
        if unambiguous(opening) or opening in self._inside:
            return run
        rest = run[1:]
        if not rest:
            return rest
        # `Darren Edge` is one name; in `Ordinary RAG` only the second word is.
        return rest if unambiguous(rest[0].text) else run


def _titles(text: str) -> Iterator[Span]:
    """Yield quoted titles of works: most words capitalised, or many words after `published`, `titled`, ..."""
    for match in _QUOTED.finditer(text):
        words = _WORD.findall(match.group(1))
        if len(words) < 3 or not words[0][0].isupper():
            continue
        capitals = sum(word[0].isupper() for word in words)
        told = len(words) >= 5 and _TOLD.search(text[max(0, match.start() - 30) : match.start()])
        if told or 2 * capitals >= len(words):
            yield Span(match.group(1).rstrip(".,"), match.start(1), match.end(1), "work")
