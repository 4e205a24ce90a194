"""How sources are shown: the [n] chips of an answer, the list of sources, and the open document.

A chip carries where its quote stands and a short hash of the quote, so that opening it needs no server-side
state and notices a document that has changed since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from agents.state import Citation
from retrieval.types import Document, DocumentText
from ui.markup import escape, escape_lines

MAX_SHOWN_CHARS = 60_000
"""A longer document is shown as the stretch of this many characters around the quote."""

MAX_QUOTE_CHARS = 320
"""Longer quotes are cut in the list of sources; the open document shows them whole."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a button of class `opens` opens: a document, and where in it a quote stands."""

    document_id: str
    """The document."""
    start: int = 0
    """Offset of the quote's first character."""
    end: int = 0
    """Offset after its last character; equal to `start` where there is no quote."""
    quote_hash: str = ""
    """`quote_hash` of the quote when the answer was written."""

    def to_text(self) -> str:
        """Return the place as the `value` of a button, the one attribute the chat's sanitiser leaves free."""
        if self.start == self.end:
            return self.document_id
        return f"{self.document_id} {self.start} {self.end} {self.quote_hash}"

    @classmethod
    def from_text(cls, text: str) -> Place:
        """Return the place a button named; whatever cannot be read opens the document at its start."""
        parts = text.split(" ")
        if len(parts) == 4 and parts[1].isdecimal() and parts[2].isdecimal():
            return cls(parts[0], int(parts[1]), int(parts[2]), parts[3])
        return cls(parts[0])


def quote_hash(quote: str) -> str:
    """Return a short fingerprint of a quote."""
    return hashlib.sha256(quote.encode()).hexdigest()[:12]


def chip(citation: Citation) -> str:
    """Return the clickable number of a citation."""
    # The brackets have no size on the page, but stand in what a person selects and copies.
    number = f"<i>[</i>{citation.number}<i>]</i>"
    return _opener(citation, "cite", number, f"Source {citation.number}: {_where(citation)}")


def chips(citations: Sequence[Citation]) -> dict[int, str]:
    """Return the chips of an answer by number; the first citation of a number is the one it opens."""
    return {citation.number: chip(citation) for citation in reversed(citations)}


def source_row(citations: Sequence[Citation]) -> str:
    """Return the buttons that name every cited document, to stand under an answer."""
    pills = "".join(
        _opener(
            citation,
            "pill",
            f"<b>{citation.number}</b><span>{escape(citation.document)}</span>",
            f"Open source {citation.number}: {_where(citation)}",
        )
        for citation in citations
    )
    return pills


def quote_list(citations: Sequence[Citation]) -> str:
    """Return the quotes themselves, for an answer that could not be given."""
    items = "".join(
        f"<li>{_opener(citation, 'quote', _quote_html(citation), f'Open {_where(citation)}')}</li>"
        for citation in citations
    )
    return f'<ol class="quotes">{items}</ol>' if items else ""


def source_panel(citations: Sequence[Citation], *, abstained: bool = False) -> str:
    """Return the panel beside the chat: document, page and quote of every citation of the last answer."""
    if not citations:
        return (
            '<section class="sources empty"><h2>Sources</h2>'
            "<p>The passages an answer rests on appear here. "
            "Open one to read it in its document.</p></section>"
        )
    title = "Closest passages" if abstained else "Sources"
    items = "".join(
        f"<li>{_opener(one, 'card', _card_html(one), f'Open source {one.number}: {_where(one)}')}</li>"
        for one in citations
    )
    return f'<section class="sources"><h2>{title}</h2><ol>{items}</ol></section>'


def document_view(document: Document, text: DocumentText, place: Place, opened_id: str) -> str:
    """Return the open document, its quote marked.

    Args:
        document: What is shown.
        text: Its text; every character of it is escaped.
        place: The quote to mark.
        opened_id: Unique per opening, so that opening the same place twice is a change of value.
    """
    start, end = place.start, place.end
    changed = start != end and quote_hash(text.text[start:end]) != place.quote_hash
    notice = (
        '<p class="notice" role="status">This document has changed since the answer was written; '
        "the quote no longer stands where it was.</p>"
        if changed
        else ""
    )
    if changed:
        start = end = min(start, len(text.text))
    first, last = _window(text, start, end)
    return (
        f'<article class="reader" role="dialog" aria-label="{escape(document.name)}" '
        f'data-opened="{escape(opened_id)}">'
        f"<header><div><h2>{escape(document.name)}</h2><p>{_facts(document, text, start, end)}</p></div>"
        '<button type="button" class="close" data-close aria-label="Close document">&times;</button></header>'
        f"{notice}"
        f'<div class="body" tabindex="0" aria-label="Text of {escape(document.name)}">'
        f"{_left_out(first, 'before')}{_pages(text, first, last, start, end)}"
        f"{_left_out(len(text.text) - last, 'after')}</div></article>"
    )


def _opener(citation: Citation, kind: str, inner_html: str, label: str) -> str:
    """Return a button that opens a citation's place."""
    place = Place(citation.document_id, citation.start, citation.end, quote_hash(citation.quote))
    return (
        f'<button type="button" class="{kind} opens" value="{escape(place.to_text())}" '
        f'title="{escape(label)}" aria-label="{escape(label)}">{inner_html}</button>'
    )


def _where(citation: Citation) -> str:
    page = f", page {citation.page}" if citation.page is not None else ""
    return f"{citation.document}{page}"


def _card_html(citation: Citation) -> str:
    page = f'<span class="page">p. {citation.page}</span>' if citation.page is not None else ""
    return (
        f'<span class="head"><b>{citation.number}</b>'
        f'<span class="name">{escape(citation.document)}</span>{page}</span>'
        f"<q>{escape_lines(_cut(citation.quote))}</q>"
    )


def _quote_html(citation: Citation) -> str:
    return (
        f"<q>{escape_lines(_cut(citation.quote))}</q>"
        f'<span class="head"><b>{citation.number}</b>'
        f'<span class="name">{escape(_where(citation))}</span></span>'
    )


def _cut(quote: str) -> str:
    flat = " ".join(quote.split())
    return flat if len(flat) <= MAX_QUOTE_CHARS else flat[: MAX_QUOTE_CHARS - 1].rstrip() + "…"


def _facts(document: Document, text: DocumentText, start: int, end: int) -> str:
    """Return the line under the name: library, page, size."""
    page = text.page_at(start) if end > start else None
    parts = [escape(document.library)]
    if page is not None:
        parts.append(f"page {page} of {len(text.page_starts)}")
    elif text.page_starts:
        parts.append(f"{len(text.page_starts)} pages")
    parts.append(f"{len(text.text):,} characters")
    return " · ".join(parts)


def _window(text: DocumentText, start: int, end: int) -> tuple[int, int]:
    """Return the stretch to show: a short document whole, of a long one what surrounds the quote."""
    length = len(text.text)
    if length <= MAX_SHOWN_CHARS:
        return 0, length
    room = max(0, MAX_SHOWN_CHARS - (end - start))
    first = max(0, start - room // 2)
    last = min(length, first + (end - start) + room)
    starts = [begin for begin in text.page_starts if first < begin <= start]
    if starts:
        first = starts[0]
    elif first > 0 and (found := text.text.find("\n", first, start)) >= 0:
        first = found + 1
    return first, last


def _pages(text: DocumentText, first: int, last: int, start: int, end: int) -> str:
    """Return the text from first to last, cut at its pages, the part from start to end marked."""
    inner = [begin for begin in text.page_starts if first < begin < last]
    bounds = [first, *inner, last]
    shown = []
    for begin, stop in pairwise(bounds):
        page = text.page_at(begin)
        label = f"<h3>Page {page}</h3>" if page is not None else ""
        shown.append(
            f'<section>{label}<div class="text">{_marked(text.text, begin, stop, start, end)}</div></section>'
        )
    return "".join(shown)


def _marked(text: str, begin: int, stop: int, start: int, end: int) -> str:
    """Return text[begin:stop] escaped, with the part of it between start and end inside <mark>."""
    low, high = max(begin, start), min(stop, end)
    if low >= high:
        return escape(text[begin:stop])
    return f"{escape(text[begin:low])}<mark>{escape(text[low:high])}</mark>{escape(text[high:stop])}"


def _left_out(num_chars: int, where: str) -> str:
    return (
        f'<p class="left-out">{num_chars:,} characters {where} this are not shown</p>'
        if num_chars > 0
        else ""
    )
