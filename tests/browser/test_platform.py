"""The page on the real platform: a question, its citations, an upload, a reload."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect
from test_page import ask, eventually, upload, wait_idle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.integration,
    # Gradio 6.31 counts its events with pandas options that pandas has deprecated.
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

OpenPage = Callable[..., Page]


def open_first_source(page: Page) -> str:
    """Open the first source and return what is marked in its document."""
    page.locator("#sources .card").first.click()
    mark = page.locator("#reader mark").first
    expect(mark).to_be_in_viewport()
    return "".join(page.locator("#reader mark").evaluate_all("marks => marks.map(mark => mark.textContent)"))


def test_question_ends_in_citations_that_stand_in_their_document(open_page: OpenPage, platform_url, platform):
    page = open_page(platform_url)
    ask(page, "How does PagedAttention store the KV cache?")
    wait_idle(page)
    expect(page.locator("#chat .answer, #chat .abstained").last).to_be_visible()
    expect(page.locator("#chat .note.error")).to_have_count(0)
    quote = open_first_source(page)
    name = page.locator("#reader h2").inner_text()
    (document,) = [item for item in platform.documents() if item.name == name]
    assert quote in platform.text(document.document_id).text
    shown = page.locator("#sources .card q").first.inner_text()
    assert " ".join(quote.split()).startswith(shown.rstrip("…"))


def test_uploaded_file_is_found(open_page: OpenPage, platform_url):
    page = open_page(platform_url)
    page.get_by_role("tab", name="Library").click()
    page.locator("#library input").fill("browser test")
    page.locator("#library input").press("Enter")
    upload(
        page,
        (
            "zinnober-protocol.md",
            b"# Zinnober protocol\n\n"
            b"The Zinnober protocol seals every envelope with seven drops of vermilion wax.",
        ),
    )
    row = page.locator('#documents li[data-name="zinnober-protocol.md"]')
    expect(row).to_have_attribute("data-state", "ready", timeout=60_000)
    page.get_by_role("tab", name="Chat").click()
    ask(page, "How does the Zinnober protocol seal every envelope?")
    wait_idle(page)
    expect(page.locator("#sources .card").first).to_contain_text("zinnober-protocol.md")
    assert "vermilion" in open_first_source(page)


def test_reload_keeps_the_thread(open_page: OpenPage, platform_url):
    page = open_page(platform_url)
    ask(page, "What is LoRA?")
    wait_idle(page)
    said = page.locator("#chat .answer, #chat .abstained").last.inner_text()
    page.reload()
    expect(page.locator("#chat .question")).to_have_text("What is LoRA?")
    assert page.locator("#chat .answer, #chat .abstained").last.inner_text() == said


def test_stop_frees_the_engine(open_page: OpenPage, platform_url):
    page = open_page(platform_url)
    ask(page, "Explain in detail how continuous batching, paged attention and prefix caching work together.")
    page.locator("#question .stop-button").click()
    wait_idle(page)

    def idle() -> bool:
        stats = httpx.get(f"{platform_url}/v1/generator").raise_for_status().json()["stats"]
        return stats["num_running"] == stats["num_waiting"] == 0

    assert eventually(idle, 15.0)
