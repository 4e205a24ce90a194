"""The page in a browser, over the SDK fake: every ending, every list, every width."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fakes_graft import FakeGraft
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.browser,
    # Gradio 6.31 counts its events with pandas options that pandas has deprecated.
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

QUESTION = "How does PagedAttention store the KV cache in blocks?"
OpenPage = Callable[..., Page]


def ask(page: Page, question: str) -> None:
    """Ask, and wait until the run is on the page."""
    asked = page.locator("#chat .question").count()
    page.fill("#question textarea", question)
    page.keyboard.press("Enter")
    if question.strip():
        expect(page.locator("#chat .question")).to_have_count(asked + 1)


def wait_idle(page: Page) -> None:
    page.wait_for_selector("#question .submit-button", timeout=30_000)


def eventually(rule: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if rule():
            return True
        time.sleep(0.05)
    return False


def upload(page: Page, *files: tuple[str, bytes]) -> None:
    page.get_by_role("tab", name="Library").click()
    page.wait_for_selector("#documents .documents")
    page.set_input_files(
        "#files input[type=file]",
        files=[{"name": name, "mimeType": "text/plain", "buffer": data} for name, data in files],
    )


def test_answer_streams_with_steps_then_cites(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, QUESTION)
    expect(page.locator("#chat .question").last).to_have_text(QUESTION)
    expect(page.locator("#chat .thought-group .title")).to_contain_text("…")
    expect(page.locator("#chat .answer.draft")).to_be_visible()
    expect(page.locator("#question .stop-button")).to_be_visible()
    wait_idle(page)
    expect(page.locator("#chat .answer.draft")).to_have_count(0)
    expect(page.locator("#chat .thought-group .title")).to_contain_text("Read 4 passages")
    expect(page.locator("#chat button.cite").first).to_have_text("[1]")
    expect(page.locator("#sources .card").first).to_contain_text("paged-attention.pdf")
    expect(page.locator("#sources .card").first).to_contain_text("p. 1")
    expect(page.locator("#threads li[aria-current]")).to_contain_text(QUESTION)


@pytest.mark.parametrize("width", [1360, 390])
def test_citation_opens_the_document_at_its_quote(open_page: OpenPage, fake_server, width: int):
    page = open_page(fake_server.url, width=width)
    ask(page, "How does vLLM schedule requests and preempt by recomputation?")
    wait_idle(page)
    opener = page.locator("#chat button.cite").first
    opener.click()
    mark = page.locator("#reader mark")
    expect(mark).to_be_in_viewport()
    quote = mark.evaluate("mark => mark.textContent")
    assert quote == "vLLM schedules requests at every step and preempts by recomputation when blocks run out."
    expect(page.locator("#reader h2")).to_have_text("paged-attention.pdf")
    expect(page.locator("#reader header p")).to_contain_text("page 3 of 3")
    page.keyboard.press("Escape")
    expect(page.locator("#reader .reader")).to_be_hidden()
    expect(opener).to_be_focused()
    opener.click()
    expect(mark).to_be_in_viewport()
    page.locator("#reader .close").click()
    expect(page.locator("#reader .reader")).to_be_hidden()


def test_source_card_opens_with_the_keyboard(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, QUESTION)
    wait_idle(page)
    page.locator("#sources .card").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#reader h2")).to_have_text("cacheblend.md")
    expect(page.locator("#reader mark")).to_be_in_viewport()
    expect(page.locator("#reader .close")).to_be_focused()


def test_answer_is_copied_with_its_sources(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "How does Self-RAG decide when to retrieve?")
    wait_idle(page)
    page.locator("#chat button.copy").click()
    expect(page.locator("#chat button.copy")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(
        "Self-RAG trains a model to emit reflection tokens that decide when to retrieve. [1]"
    )
    assert "\n[1] self-rag.html" in copied


def test_abstention_does_not_look_like_an_answer(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, "Which mandrel costs most?")
    wait_idle(page)
    notice = page.locator("#chat .abstained")
    expect(notice).to_contain_text("No supported answer")
    assert notice.locator("button.quote").count() > 0
    expect(page.locator("#chat .answer")).to_have_count(0)
    notice.locator("button.quote").first.click()
    expect(page.locator("#reader mark")).to_be_visible()


def test_hostile_document_stays_text(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, "Rotation of a mandrel is five turns & no more <img src=x onerror=window.pwned=3>")
    wait_idle(page)
    page.locator("#sources .card").first.click()
    expect(page.locator("#reader h2")).to_have_text("hostile.md")
    expect(page.locator("#reader .text")).to_contain_text("<script>window.pwned=1</script>")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#reader img, #reader script, #chat img, #chat script, #sources img").count() == 0


def test_stop_reaches_the_run_and_keeps_the_answer(open_page: OpenPage, fake_server):
    graft: FakeGraft = fake_server.graft
    page = open_page(fake_server.url)
    ask(page, f"slowly: {QUESTION}")
    expect(page.locator("#chat .answer.draft")).to_contain_text("PagedAttention stores")
    run = graft.rag.runs[-1]
    page.locator("#question .stop-button").click()
    wait_idle(page)
    assert run.closed
    assert 0 < run.num_tokens < 2_000
    expect(page.locator("#chat .note.stopped")).to_have_text("Stopped.")
    expect(page.locator("#chat .answer")).to_contain_text("PagedAttention stores")
    ask(page, QUESTION)
    wait_idle(page)
    expect(page.locator("#chat .note.stopped")).to_have_count(1)
    expect(page.locator("#chat .answer")).to_have_count(2)


def test_closed_tab_ends_its_run(open_page: OpenPage, fake_server):
    graft: FakeGraft = fake_server.graft
    page = open_page(fake_server.url)
    ask(page, f"slowly: {QUESTION}")
    expect(page.locator("#chat .answer.draft")).to_be_visible()
    run = graft.rag.runs[-1]
    assert not run.closed
    page.close()
    assert eventually(lambda: run.closed, 15.0)
    assert run.num_tokens < 2_000


def test_new_chat_during_a_run_ends_the_run(open_page: OpenPage, fake_server):
    graft: FakeGraft = fake_server.graft
    page = open_page(fake_server.url)
    ask(page, f"slowly: {QUESTION}")
    expect(page.locator("#chat .answer.draft")).to_be_visible()
    page.locator("#new-chat").click()
    expect(page.locator("#chat .question")).to_have_count(0)
    wait_idle(page)
    assert eventually(lambda: graft.rag.runs[-1].closed)
    ask(page, QUESTION)
    wait_idle(page)
    expect(page.locator("#chat .question")).to_have_count(1)


def test_broken_run_says_why(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, "please break it")
    expect(page.locator("#chat .note.error")).to_have_text("the generator stopped; run `graft doctor`")
    wait_idle(page)


def test_empty_question_asks_nothing(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    before = len(fake_server.graft.rag.runs)
    ask(page, "   ")
    expect(page.get_by_text("Write a question first.")).to_be_visible()
    assert len(fake_server.graft.rag.runs) == before


def test_example_question_is_asked(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    page.get_by_text("What does CacheBlend recompute").click()
    expect(page.locator("#chat .question")).to_have_count(1)
    wait_idle(page)
    expect(page.locator("#sources .card").first).to_contain_text("cacheblend.md")


def test_reload_keeps_the_conversation(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, QUESTION)
    wait_idle(page)
    answer = page.locator("#chat .answer").inner_text()
    page.reload()
    expect(page.locator("#chat .question")).to_have_text(QUESTION)
    assert page.locator("#chat .answer").inner_text() == answer
    expect(page.locator("#sources .card").first).to_contain_text("paged-attention.pdf")
    ask(page, "What does CacheBlend recompute?")
    wait_idle(page)
    expect(page.locator("#chat .question")).to_have_count(2)
    page.locator("#chat button.cite").first.click()
    expect(page.locator("#reader mark")).to_be_visible()


def test_conversations_are_kept_opened_and_deleted(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, "How does Self-RAG decide when to retrieve with reflection tokens?")
    wait_idle(page)
    page.locator("#new-chat").click()
    expect(page.locator("#chat .question")).to_have_count(0)
    first = page.locator("#threads li", has_text="How does Self-RAG decide when").first
    first.locator(".name").click()
    expect(page.locator("#chat .question")).to_contain_text("Self-RAG")
    first.hover()
    first.get_by_role("button", name="Delete chat").click()
    first.get_by_role("button", name="Keep").click()
    expect(page.locator("#chat .question")).to_have_count(1)
    first.get_by_role("button", name="Delete chat").click()
    first.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#chat .question")).to_have_count(0)
    expect(page.locator("#threads li", has_text="with reflection tokens")).to_have_count(0)


def test_upload_becomes_ready_and_can_be_asked_about(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    upload(page, ("grafting.md", b"A graft joins a scion to a rootstock so that both grow as one plant."))
    row = page.locator('#documents li[data-name="grafting.md"]')
    expect(row.get_by_role("progressbar")).to_be_visible()
    expect(row).to_have_attribute("data-state", "ready", timeout=15_000)
    page.get_by_role("tab", name="Chat").click()
    ask(page, "What joins a scion to a rootstock?")
    wait_idle(page)
    expect(page.locator("#sources .card").first).to_contain_text("grafting.md")
    page.get_by_role("tab", name="Library").click()
    row.get_by_role("button", name="Read grafting.md").click()
    expect(page.locator("#reader .text")).to_contain_text("scion")


def test_refused_and_failed_files_say_why(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    upload(page, ("empty.txt", b""), ("broken.txt", b"x"), ("fine.txt", b"Fine words."))
    expect(page.locator("#documents .refused")).to_contain_text("empty.txt")
    broken = page.locator('#documents li[data-name="broken.txt"]')
    expect(broken).to_have_attribute("data-state", "failed", timeout=15_000)
    expect(broken).to_contain_text("save it with text")
    expect(page.locator('#documents li[data-name="fine.txt"]')).to_have_attribute("data-state", "ready")
    expect(page.locator("#documents .refused")).to_contain_text("empty.txt")
    page.reload()
    page.get_by_role("tab", name="Library").click()
    expect(broken).to_contain_text("save it with text")
    broken.get_by_role("button", name="Delete broken.txt").click()
    broken.get_by_role("button", name="Delete", exact=True).click()
    expect(broken).to_have_count(0)


def test_polling_ends_when_every_document_is_done(open_page: OpenPage, fake_server):
    graft: FakeGraft = fake_server.graft
    page = open_page(fake_server.url)
    upload(page, ("quick.txt", b"Quick words."))
    row = page.locator('#documents li[data-name="quick.txt"]')
    expect(row).to_have_attribute("data-state", "ready", timeout=15_000)
    page.wait_for_timeout(1_500)
    before = graft.calls.count("documents")
    page.wait_for_timeout(2_500)
    assert graft.calls.count("documents") == before


def test_new_library_is_made_with_its_first_file_and_limits_the_search(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    page.get_by_role("tab", name="Library").click()
    picker = page.locator("#library input")
    picker.fill("orchard")
    picker.press("Enter")
    expect(page.locator("#documents .empty")).to_contain_text("orchard is empty")
    upload(page, ("apples.md", b"Apple trees store starch in blocks of wood."))
    row = page.locator('#documents li[data-name="apples.md"]')
    expect(row).to_have_attribute("data-state", "ready", timeout=15_000)
    page.get_by_role("tab", name="Chat").click()
    page.locator("#scope input").click()
    page.get_by_role("option", name="orchard").click()
    ask(page, QUESTION)
    wait_idle(page)
    assert fake_server.graft.rag.runs[-1].library == "orchard"
    expect(page.locator("#sources .card").first).to_contain_text("apples.md")
    page.reload()
    expect(page.locator("#scope input")).to_have_value("orchard · 1 document")


@pytest.mark.parametrize(
    ("width", "dark"), [(390, False), (390, True), (768, False), (1360, True), (1920, False)]
)
def test_nothing_overflows_sideways(open_page: OpenPage, fake_server, width: int, dark: bool):
    page = open_page(fake_server.url, width=width, dark=dark)
    ask(page, QUESTION)
    wait_idle(page)
    for tab in ("Library", "Chat"):
        page.get_by_role("tab", name=tab).click()
        assert (
            page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        )


def test_controls_have_names(open_page: OpenPage, fake_server):
    page = open_page(fake_server.url)
    ask(page, QUESTION)
    wait_idle(page)
    expect(page.get_by_role("textbox", name="Question")).to_be_visible()
    expect(page.get_by_role("combobox", name="Search in")).to_be_visible()
    expect(page.get_by_role("navigation", name="Earlier chats")).to_be_visible()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('#chat-columns button')]
            .filter(b => b.offsetParent && !b.closest('.arrow'))
            .filter(b => !(b.innerText.trim() || b.ariaLabel || b.title)).map(b => b.outerHTML)"""
    )
    assert unnamed == []
    labels = page.evaluate("[...document.querySelectorAll('#chat [aria-label]')].map(e => e.ariaLabel)")
    assert not [label for label in labels if "<" in label]
