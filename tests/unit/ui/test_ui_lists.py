from __future__ import annotations

from dataclasses import replace

import pytest
from test_ui_markup import HOSTILE, Page

from agents.state import ThreadInfo
from retrieval.types import Document, DocumentState, Library
from ui.documents import UNDER_WAY, document_list, library_choices, under_way
from ui.threads import MAX_THREADS, age, thread_list

DOCUMENT = Document(
    "d1", "notes", "a.md", "text/markdown", "0" * 64, 2_048, DocumentState.READY, num_chunks=3
)
ACTIONS = {"button", "span", "small", "p", "i", "ul", "li", "section", "strong", "nav", "div", "h3", "br"}


def test_every_state_is_shown():
    for state in DocumentState:
        html = document_list([replace(DOCUMENT, state=state)], "notes")
        assert f'data-state="{state.value}"' in html
        assert ('role="progressbar"' in html) == (state in UNDER_WAY)


def test_bar_of_a_document_being_embedded_grows_with_its_share():
    embedding = replace(DOCUMENT, state=DocumentState.EMBEDDING)
    bars = [document_list([replace(embedding, share=share)], "notes") for share in (None, 0.0, 0.5, 1.0)]
    for bar, percent, said in zip(bars, (60, 60, 80, 100), ("", " 0%", " 50%", " 100%"), strict=True):
        assert f'aria-valuenow="{percent}"' in bar
        assert f">Embedding{said}</span>" in bar


def test_failed_document_shows_its_cause():
    failed = replace(
        DOCUMENT, state=DocumentState.FAILED, error="The file is encrypted; remove its password."
    )
    assert "The file is encrypted; remove its password." in Page(document_list([failed], "notes")).text


def test_refused_file_shows_its_reason():
    text = Page(document_list([], "notes", [("a.md", "It is empty.")])).text
    assert "a.md was not added. It is empty." in text


def test_polling_ends_when_nothing_is_under_way():
    assert under_way([DOCUMENT, replace(DOCUMENT, state=DocumentState.QUEUED)])
    assert not under_way([DOCUMENT, replace(DOCUMENT, state=DocumentState.FAILED)])
    assert not under_way([])


def test_document_that_was_never_ready_cannot_be_read():
    assert "opens" in document_list([DOCUMENT], "notes")
    assert "opens" not in document_list(
        [replace(DOCUMENT, state=DocumentState.FAILED, num_chunks=0)], "notes"
    )


def test_summary_counts():
    text = Page(
        document_list([DOCUMENT, replace(DOCUMENT, state=DocumentState.QUEUED, num_chunks=0)], "n")
    ).text
    assert "2 documents, 1 ready, 3 passages" in text
    assert "2.0 kB · 3 passages" in text
    assert library_choices([Library("n", 2, 1, 3)]) == [("n · 1 document", "n")]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_are_only_text(hostile: str):
    failed = replace(DOCUMENT, name=hostile, error=hostile, state=DocumentState.FAILED, media_type="x/y")
    for html in (
        document_list([failed], hostile, [(hostile, hostile)]),
        document_list([], hostile),
        thread_list([ThreadInfo(hostile, hostile, 0.0)], hostile, 5.0),
    ):
        page = Page(html)
        assert {tag for tag, _ in page.tags} <= ACTIONS
        assert not {
            name for _, attributes in page.tags for name in attributes if name in ("src", "href", "onerror")
        }


def test_open_conversation_is_marked():
    html = thread_list([ThreadInfo("t1", "One", 0.0), ThreadInfo("t2", "Two", 0.0)], "t2", 90.0)
    marked = [attributes for tag, attributes in Page(html).tags if "aria-current" in attributes]
    assert len(marked) == 1
    assert html.index("aria-current") > html.index("One")


def test_long_list_of_conversations_is_cut_and_says_so():
    html = thread_list([ThreadInfo(f"t{n}", "One", 0.0) for n in range(MAX_THREADS + 3)], "", 90.0)
    assert html.count("<li") == MAX_THREADS
    assert "and 3 earlier" in html


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "just now"), (59, "just now"), (61, "1 min"), (3_600, "1 h"), (90_000, "1 d"), (700_000, "1 wk")],
)
def test_ages_are_one_short_unit(seconds: float, words: str):
    assert age(seconds) == words
