from __future__ import annotations

import re

import pytest
from fakes_graft import sample_graft
from test_ui_markup import HOSTILE, Page

from agents.state import Citation
from retrieval.types import Document, DocumentState, DocumentText
from ui.sources import (
    MAX_SHOWN_CHARS,
    Place,
    chip,
    chips,
    document_view,
    quote_hash,
    quote_list,
    source_panel,
    source_row,
)

DOCUMENT = Document(
    "d1", "notes", "a <b>.pdf", "application/pdf", "0" * 64, 10, DocumentState.READY, num_pages=2
)


def citation(
    number: int = 1, quote: str = "the quote", page: int | None = 3, name: str = "a.pdf"
) -> Citation:
    return Citation(number, "d1", name, "d1:0:0", page, 10, 10 + len(quote), quote, 1.0)


def marked(html: str) -> str:
    """Return the text inside <mark>."""
    return Page("".join(re.findall(r"<mark>(.*?)</mark>", html, flags=re.DOTALL))).text


def shown(html: str) -> str:
    """Return the document text that is shown."""
    return Page("".join(re.findall(r'<div class="text">(.*?)</div>', html, flags=re.DOTALL))).text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_documents_are_only_text(hostile: str):
    text = f"start {hostile} middle {hostile} end"
    start = len(f"start {hostile} ")
    place = Place("d1", start, start + len("middle " + hostile), quote_hash(f"middle {hostile}"))
    html = document_view(DOCUMENT, DocumentText(text), place, "o1")
    tags = {tag for tag, _ in Page(html).tags}
    assert tags == {"article", "header", "div", "h2", "p", "button", "section", "mark"}
    assert all(
        not name.startswith("on") and name not in ("src", "href") for _, a in Page(html).tags for name in a
    )
    assert shown(html) == text
    assert marked(html) == f"middle {hostile}"


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(
    "show", [chip, lambda c: source_row([c]), lambda c: quote_list([c]), lambda c: source_panel([c])]
)
def test_hostile_names_and_quotes_are_only_text(hostile: str, show):
    page = Page(show(citation(quote=hostile, name=hostile)))
    allowed = {"type", "class", "value", "title", "aria-label"}
    assert {tag for tag, _ in page.tags} <= {
        "button",
        "b",
        "i",
        "span",
        "q",
        "div",
        "ol",
        "li",
        "section",
        "h2",
    }
    assert {name for _, attributes in page.tags for name in attributes} <= allowed


def test_quote_is_marked_across_a_page_break():
    text = DocumentText("first page ends here, second page goes on", page_starts=(0, 16))
    html = document_view(DOCUMENT, text, Place("d1", 6, 27, quote_hash(text.text[6:27])), "o1")
    assert html.count("<mark>") == 2
    assert marked(html) == text.text[6:27]
    assert shown(html) == text.text
    assert "Page 1" in html
    assert "Page 2" in html
    assert "page 1 of 2" in html


def test_changed_document_marks_nothing_and_says_so():
    html = document_view(
        DOCUMENT, DocumentText("other words now"), Place("d1", 0, 5, quote_hash("quote")), "o1"
    )
    assert "<mark>" not in html
    assert "has changed" in html
    assert "other words now" in html


def test_quote_beyond_the_text_marks_nothing_and_says_so():
    html = document_view(DOCUMENT, DocumentText("short"), Place("d1", 100, 110, quote_hash("x")), "o1")
    assert "<mark>" not in html
    assert "has changed" in html


def test_document_without_a_quote_opens_at_its_start():
    html = document_view(DOCUMENT, DocumentText("all of it"), Place("d1"), "o1")
    assert "<mark>" not in html
    assert "has changed" not in html
    assert shown(html) == "all of it"


@pytest.mark.parametrize("start", [0, 200_000, 399_990])
@pytest.mark.parametrize("pages", [(), tuple(range(0, 400_000, 3_000))])
def test_long_document_shows_what_surrounds_the_quote(start: int, pages: tuple[int, ...]):
    text = "".join(f"line {number:07}\n" for number in range(30_770))[:400_000]
    place = Place("d1", start, start + 10, quote_hash(text[start : start + 10]))
    html = document_view(DOCUMENT, DocumentText(text, pages), place, "o1")
    assert marked(html) == text[start : start + 10]
    assert 1_000 < len(shown(html)) <= MAX_SHOWN_CHARS
    assert shown(html) in text
    assert "are not shown" in html


def test_place_survives_the_way_through_the_browser():
    page = Page(chip(citation(quote="a quote")))
    (_, attributes) = page.tags[0]
    assert Place.from_text(attributes["value"] or "") == Place("d1", 10, 17, quote_hash("a quote"))
    assert Place.from_text("d1") == Place("d1")


@pytest.mark.parametrize("text", ["", "d1 1", "d1 -1 5 x", "d1 one two x", "d1 1 2 3 4"])
def test_unreadable_place_opens_no_quote(text: str):
    place = Place.from_text(text)
    assert place.start == place.end == 0


def test_sources_name_document_page_and_quote():
    page = Page(source_panel([citation(1, "First quote.", 3), citation(2, "Second.", None, "b.md")]))
    assert "a.pdf" in page.text
    assert "p. 3" in page.text
    assert "First quote." in page.text
    assert "b.md" in page.text
    assert page.text.count("p. ") == 1


def test_first_citation_of_a_number_is_the_one_its_chip_opens():
    first, second = citation(1, "first"), citation(1, "second")
    assert chips([first, second]) == {1: chip(first)}


def test_fake_quotes_what_its_documents_hold():
    graft = sample_graft()
    for stored in graft.stored.values():
        assert stored.text.text[:10]
