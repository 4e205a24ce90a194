"""A headless Chromium, and the page over the SDK fake; the real platform is the session's `platform_url`."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from fakes_graft import FakeGraft, sample_graft
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# What Gradio's own files write to the console on every page.
KNOWN_NOISE = ("Method not implemented", "Autofocus processing was blocked")


@dataclass
class Watched:
    """What a page did that it should not have done."""

    console: list[str] = field(default_factory=list)
    """Errors and warnings of the console, uncaught exceptions."""
    strangers: list[str] = field(default_factory=list)
    """Requests to another host."""


def chromium() -> str:
    """Return the browser's path, or skip."""
    named = os.environ.get("GRAFT_CHROMIUM")
    found = named or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not found or not os.path.exists(found):
        pytest.skip("no Chromium; install the package `chromium`, or name its binary in GRAFT_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    # A module at a time: while it runs, Playwright holds an event loop that async tests could not enter.
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages that fail the test when they log an error or call another host."""
    opened: list[tuple[Page, Watched]] = []

    def open_(url: str, *, width: int = 1360, height: int = 860, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page, watched = context.new_page(), Watched()
        opened.append((page, watched))
        page.on("console", lambda message: _note(watched, message.type, message.text))
        page.on("pageerror", lambda error: watched.console.append(str(error)))
        page.on("request", lambda request: _note_request(watched, url, request.url))
        page.goto(url)
        page.wait_for_selector("#question textarea")
        page.wait_for_selector("#threads nav")
        return page

    yield open_
    for page, watched in opened:
        page.context.close()
        assert watched.console == []
        assert watched.strangers == []


@dataclass
class FakeServer:
    """The page over the fake, on a free port."""

    graft: FakeGraft
    """What it talks to."""
    url: str
    """Where it is."""


@pytest.fixture(scope="session")
def fake_server() -> Iterator[FakeServer]:
    """Serve the page over the SDK fake, so that every ending can be made to happen."""
    import uvicorn
    from fastapi import FastAPI

    import ui

    graft = sample_graft(pace=0.5, think_s=0.2, token_s=0.02)
    server: uvicorn.Server | None = None
    failure: list[BaseException] = []

    async def serve() -> None:
        nonlocal server
        app = ui.mount(FastAPI(), ui.build_app(graft, lambda request: None))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
        await server.serve()

    def run() -> None:
        import asyncio

        try:
            asyncio.run(serve())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline_s = time.monotonic() + 60
    while server is None or not server.started:
        assert not failure, failure
        assert time.monotonic() < deadline_s, "the page did not start within 60 s"
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield FakeServer(graft, f"http://127.0.0.1:{port}/")
    server.should_exit = True
    thread.join(20)


def _note(watched: Watched, kind: str, text: str) -> None:
    if kind in ("error", "warning") and not any(noise in text for noise in KNOWN_NOISE):
        watched.console.append(f"{kind}: {text}")


def _note_request(watched: Watched, home: str, url: str) -> None:
    if not url.startswith((home, "data:", "blob:")):
        watched.strangers.append(url)
