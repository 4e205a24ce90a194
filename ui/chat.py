"""The Chat tab: a question, the answer as it streams, its sources, and the conversations kept so far."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import gradio as gr

from agents.state import ChatTurn
from ui.access import Gate, sent
from ui.client import GraftClient
from ui.documents import library_choices
from ui.runs import Message, RunFeed, RunView, messages, turn_messages
from ui.sources import source_panel
from ui.theme import FOLDER
from ui.threads import thread_list

Updates = dict[Any, Any]
"""New values by component; components left out stay as they are."""

MAX_QUESTION_CHARS = 4_000
"""Longest question the box takes; the platform has its own limit."""

MAX_RUNS = 32
"""Answers that stream at once over all browsers; more wait in Gradio's queue."""

EVERYWHERE = ("All libraries", "")
"""The choice that searches every library."""

EXAMPLES = (
    "How does PagedAttention avoid wasting KV cache memory?",
    "What does CacheBlend recompute, and why?",
    "How does Self-RAG decide when to retrieve?",
    "What is the difference between DPO and PPO training?",
)
"""First questions, about the sample library."""

WELCOME = (
    '<div class="welcome"><h2>Ask your documents</h2>'
    "<p>Every answer cites the passages it rests on. "
    "Where your documents do not say, Graft says so.</p></div>"
)


class ChatTab:
    """Components and handlers of the tab. Built inside a Blocks context."""

    def __init__(self, graft: GraftClient, gate: Gate, graph: str) -> None:
        self._graft = graft
        self._graph = graph
        self._feeds: dict[str, RunFeed] = {}
        self._build()
        self._connect(gate)

    def _build(self) -> None:
        # The id of the open conversation is no secret: the server checks whose it is on every use.
        self.thread_id = gr.BrowserState("", storage_key="graft-thread", secret="graft-thread")
        # What the selector shows, without its list of choices: a page that outlives a restart of the server
        # keeps a choice that Gradio, which lists the choices per session, would refuse.
        self.library = gr.BrowserState("", storage_key="graft-library", secret="graft-library")
        self.shown = gr.State(None)
        with gr.Row(elem_id="chat-columns", equal_height=False):
            with gr.Column(elem_id="chat-threads", scale=0, min_width=220):
                self.new_chat = gr.Button("New chat", elem_id="new-chat", size="md")
                self.threads = gr.HTML(
                    elem_id="threads",
                    js_on_load=(FOLDER / "panel.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                )
            with gr.Column(elem_id="chat-main", scale=3, min_width=320):
                self.chatbot = gr.Chatbot(
                    elem_id="chat",
                    show_label=False,
                    label="Conversation",
                    container=False,
                    height="100%",
                    layout="bubble",
                    placeholder=WELCOME,
                    examples=[{"text": text} for text in EXAMPLES],
                    sanitize_html=True,
                    allow_tags=False,
                    latex_delimiters=[],
                    buttons=[],
                    feedback_options=None,
                )
                with gr.Column(elem_id="ask"):
                    self.question = gr.Textbox(
                        elem_id="question",
                        label="Question",
                        show_label=False,
                        container=False,
                        placeholder="Ask your documents…",
                        lines=1,
                        max_lines=6,
                        max_length=MAX_QUESTION_CHARS,
                        submit_btn="Ask",
                        autofocus=True,
                        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
                    )
                    self.scope = gr.Dropdown(
                        [EVERYWHERE],
                        value=EVERYWHERE[1],
                        elem_id="scope",
                        label="Search in",
                        interactive=True,
                        filterable=False,
                    )
            with gr.Column(elem_id="chat-sources", scale=0, min_width=300):
                self.sources = gr.HTML(
                    source_panel(()),
                    elem_id="sources",
                    js_on_load=(FOLDER / "chat.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                )

    def _connect(self, gate: Gate) -> None:
        conversation = [self.chatbot, self.question, self.thread_id, self.shown, self.sources, self.threads]
        asking: dict[str, Any] = {
            "outputs": conversation,
            "show_progress": "hidden",
            "concurrency_limit": MAX_RUNS,
            "concurrency_id": "ask",
            "api_visibility": "private",
            "trigger_mode": "once",
        }
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        context = [self.thread_id, self.library, self.shown]
        self.scope.input(None, inputs=self.scope, outputs=self.library, js="value => value")
        self.question.submit(gate(self.ask), inputs=[self.question, *context], **asking)
        self.chatbot.example_select(gate(self.ask_example), inputs=context, **asking)
        self.question.stop(gate(self.stop), **quiet)
        self.new_chat.click(gate(self.start_new), outputs=conversation, **quiet)
        self.threads.open_thread(gate(self.open_thread), outputs=conversation, **quiet)
        self.threads.delete_thread(
            gate(self.delete_thread), inputs=self.thread_id, outputs=conversation, **quiet
        )

    async def load(self, request: gr.Request, thread_id: str, library: str) -> Updates:
        """Return the page as it was left: the open conversation, the others, the libraries."""
        updates = await self._conversation(str(thread_id or ""))
        return {**updates, **await self.refresh_scope(request, library)}

    async def refresh_scope(self, request: gr.Request, library: str) -> Updates:
        """Return the libraries a question can be limited to; one that is gone is no longer chosen."""
        choices = [EVERYWHERE, *library_choices(await self._graft.libraries())]
        kept = library if library in [name for _, name in choices] else EVERYWHERE[1]
        return {self.scope: gr.Dropdown(choices, value=kept), self.library: kept}

    async def ask(
        self, request: gr.Request, question: str, thread_id: str, library: str, shown: list[Message] | None
    ) -> AsyncGenerator[Updates, None]:
        """Stream an answer; ends when it is given, stopped, or the browser is gone."""
        question = (question or "").strip()
        session = str(request.session_hash)
        if not question:
            gr.Info("Write a question first.")
            return
        if session in self._feeds:
            raise gr.Error("The last question is still being answered; stop it first.", print_exception=False)
        pipeline = self._graft.pipeline(self._graph)
        thread_id = thread_id or uuid4().hex
        before = turn_messages(await self._turns(thread_id)) if shown is None else shown
        feed = RunFeed(question, pipeline.stream(question, thread_id=thread_id, library=library or None))
        self._feeds[session] = feed
        view = RunView(question)
        first: Updates = {
            self.question: gr.Textbox(value="", submit_btn=False, stop_btn="Stop"),
            self.thread_id: thread_id,
            self.sources: source_panel(()),
        }
        # Told with every view: a page that still loads may undo what the first one told.
        busy: Updates = {self.question: gr.Textbox(submit_btn=False, stop_btn="Stop")}
        try:
            async with aclosing(feed.views()) as views:
                async for view in views:
                    if self._feeds.get(session) is not feed:
                        return  # another conversation was opened meanwhile; the page is no longer ours
                    yield {self.chatbot: [*before, *messages(view, feed.elapsed_s)], **first}
                    first = busy
        finally:
            if self._feeds.get(session) is feed:
                del self._feeds[session]
        yield {
            self.question: _idle_box(),
            self.shown: [*before, *messages(view)],
            self.sources: source_panel(view.citations, abstained=view.ending == "abstained"),
            self.threads: await self._thread_list(thread_id),
        }

    async def ask_example(
        self,
        request: gr.Request,
        event: gr.SelectData,
        thread_id: str,
        library: str,
        shown: list[Message] | None,
    ) -> AsyncGenerator[Updates, None]:
        """Stream the answer to an example question."""
        value = event.value if isinstance(event.value, dict) else {}
        async with aclosing(
            self.ask(request, str(value.get("text", "")), thread_id, library, shown)
        ) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request) -> None:
        """Stop the run of this browser; what was written stays."""
        feed = self._feeds.get(str(request.session_hash))
        if feed is not None:
            feed.stop()

    async def start_new(self, request: gr.Request) -> Updates:
        """Return an empty conversation."""
        await self._leave(request)
        return await self._conversation("")

    async def open_thread(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Return a kept conversation."""
        await self._leave(request)
        return await self._conversation(sent(event, "id") or "")

    async def delete_thread(self, request: gr.Request, event: gr.EventData, thread_id: str) -> Updates:
        """Remove a conversation; the open one stays open unless it is the one removed."""
        deleted_id = sent(event, "id") or ""
        if deleted_id == thread_id:
            await self._leave(request)
        await self._graft.pipeline(self._graph).delete_thread(deleted_id)
        if deleted_id == thread_id:
            return await self._conversation("")
        return {self.threads: await self._thread_list(thread_id)}

    async def _leave(self, request: gr.Request) -> None:
        """Stop the run of this browser; when this returns, it writes no more into the page."""
        feed = self._feeds.pop(str(request.session_hash), None)
        if feed is not None:
            feed.stop()
            await feed.wait_closed()

    async def _conversation(self, thread_id: str) -> Updates:
        turns = await self._turns(thread_id)
        thread_id = thread_id if turns else ""
        kept = turn_messages(turns)
        last = turns[-1] if turns else None
        return {
            self.chatbot: kept,
            self.question: _idle_box(),
            self.thread_id: thread_id,
            self.shown: kept,
            self.sources: source_panel(last.citations, abstained=last.stop_reason == "abstained")
            if last
            else source_panel(()),
            self.threads: await self._thread_list(thread_id),
        }

    async def _turns(self, thread_id: str) -> list[ChatTurn]:
        """Return a conversation; empty where it was deleted, has expired or never began."""
        pipeline = self._graft.pipeline(self._graph)
        kept = {thread.thread_id for thread in await pipeline.threads()}
        return await pipeline.history(thread_id) if thread_id in kept else []

    async def _thread_list(self, current_id: str) -> str:
        return thread_list(await self._graft.pipeline(self._graph).threads(), current_id, time.time())


def _idle_box() -> gr.Textbox:
    return gr.Textbox(submit_btn="Ask", stop_btn=False)
