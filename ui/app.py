"""The whole page: header, the two tabs, the document drawer; and how it is mounted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import gradio as gr

from ui.access import Admission, Authorise, ContentPolicy, Gate
from ui.chat import ChatTab
from ui.client import GraftClient
from ui.library import LibraryTab
from ui.reader import Reader
from ui.streams import StreamOrder
from ui.theme import FOLDER, theme

if TYPE_CHECKING:
    from fastapi import FastAPI

MAX_QUEUED = 256
"""Events that wait at most; more are refused with a message."""

MAX_CONCURRENT = 16
"""Events of one kind that run at once."""

CACHE_AGE_S = 3_600
"""Seconds after which Gradio's temporary files are deleted; uploads are deleted at once."""

HEADER = """
<div class="brand">
  <svg viewBox="0 0 32 32" aria-hidden="true">
    <path d="M16 29V15"/>
    <path class="leaf" d="M16 17C9 17 5 13 5 6c7 0 11 4 11 11Z"/>
    <path class="leaf two" d="M16 21c0-6 4-9.5 11-9.5 0 6.500-4 9.500-11 9.500Z"/>
  </svg>
  <h1>Graft</h1><p>Cited answers from your own documents</p>
</div>
"""


def build_app(
    graft: GraftClient, authorise: Authorise, *, graph: str = "rag", admission: Admission | None = None
) -> gr.Blocks:
    """Return the page.

    Args:
        graft: The platform it talks to.
        authorise: Called first by every handler; raises AccessDenied to refuse the caller.
        graph: Name of the graph that answers.
        admission: Entered for every run; None admits all.
    """
    gate = Gate(authorise, admission)
    with gr.Blocks(
        title="Graft", analytics_enabled=False, fill_width=True, delete_cache=(CACHE_AGE_S, CACHE_AGE_S)
    ) as blocks:
        gr.HTML(HEADER, elem_id="header", js_on_load=None, apply_default_css=False)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat", elem_id="chat-tab", render_children=True) as chat_tab:
                chat = ChatTab(graft, gate, graph)
            with gr.Tab("Library", id="library", elem_id="library-tab", render_children=True) as library_tab:
                library = LibraryTab(graft, gate)
        Reader(graft, gate)
        quiet = partial(dict, show_progress="hidden", api_visibility="private")
        conversation = [chat.chatbot, chat.question, chat.thread_id, chat.shown, chat.sources, chat.threads]
        scope = [chat.scope, chat.library]
        shelf = [library.library, library.refused, library.documents, library.timer]
        blocks.load(
            gate(chat.load), inputs=[chat.thread_id, chat.library], outputs=[*conversation, *scope], **quiet()
        )
        blocks.load(gate(library.load), inputs=library.library, outputs=shelf, **quiet())
        chat_tab.select(gate(chat.refresh_scope), inputs=chat.library, outputs=scope, **quiet())
        library_tab.select(gate(library.load), inputs=library.library, outputs=shelf, **quiet())
    gate.check(blocks)
    # `api_open=False` closes the direct routes: every call passes the queue's limits and the gate.
    blocks.queue(default_concurrency_limit=MAX_CONCURRENT, max_size=MAX_QUEUED, api_open=False)
    return blocks


def mount(app: FastAPI, blocks: gr.Blocks, *, path: str = "/", max_file_bytes: int = 100 * 2**20) -> FastAPI:
    """Put the page into a FastAPI application and return the application.

    Args:
        app: Routes it already has win over the page's.
        blocks: What `build_app` returned.
        path: Where the page is.
        max_file_bytes: Largest upload accepted.
    """
    app.add_middleware(ContentPolicy, path=path)
    app.add_middleware(StreamOrder)
    return gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=max_file_bytes,
        favicon_path=str(FOLDER / "favicon.png") if path == "/" else None,
        theme=theme(),
        css=(FOLDER / "style.css").read_text(encoding="utf-8"),
    )
