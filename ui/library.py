"""The Library tab: add files, watch them become ready, read them, delete them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr

from graft.wire import OURS
from retrieval.types import DEFAULT_LIBRARY
from ui.access import Gate, sent
from ui.client import GraftClient
from ui.documents import document_list, library_choices, under_way
from ui.theme import FOLDER

Updates = dict[Any, Any]
"""New values by component; components left out stay as they are."""

POLL_S = 1.0
"""Seconds between two looks at documents under way; nobody looks when none is."""

MAX_LIBRARY_CHARS = 64
"""Longest library name the page takes."""


class LibraryTab:
    """Components and handlers of the tab. Built inside a Blocks context."""

    def __init__(self, graft: GraftClient, gate: Gate) -> None:
        self._graft = graft
        self._build()
        self._connect(gate)

    def _build(self) -> None:
        self.refused = gr.State([])
        with gr.Column(elem_id="library-column"):
            with gr.Row(elem_id="library-top", equal_height=True):
                self.library = gr.Dropdown(
                    [DEFAULT_LIBRARY],
                    value=DEFAULT_LIBRARY,
                    elem_id="library",
                    label="Library",
                    info="Choose one, or type a new name: it is made with its first file.",
                    allow_custom_value=True,
                    interactive=True,
                    scale=1,
                    min_width=260,
                )
                self.files = gr.File(
                    elem_id="files",
                    label="Add PDF, DOCX, Markdown, HTML, text",
                    file_count="multiple",
                    height=132,
                    scale=2,
                    min_width=300,
                )
            self.documents = gr.HTML(
                elem_id="documents",
                js_on_load=(FOLDER / "panel.js").read_text(encoding="utf-8"),
                apply_default_css=False,
            )
        self.timer = gr.Timer(POLL_S, active=False)

    def _connect(self, gate: Gate) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        view = [self.documents, self.timer]
        self.files.upload(
            gate(self.upload),
            inputs=[self.files, self.library],
            outputs=[self.files, self.refused, self.library, *view],
            show_progress="minimal",
            api_visibility="private",
        )
        self.library.input(
            gate(self.choose), inputs=self.library, outputs=[self.library, self.refused, *view], **quiet
        )
        self.timer.tick(gate(self.poll), inputs=[self.library, self.refused], outputs=view, **quiet)
        self.documents.delete_document(
            gate(self.delete), inputs=self.library, outputs=[self.library, self.refused, *view], **quiet
        )

    async def load(self, request: gr.Request, library: str | None) -> Updates:
        """Return the tab as the server knows it."""
        libraries = await self._graft.libraries()
        names = [item.name for item in libraries]
        name = _library_name(library)
        if name not in names and library in (None, "", DEFAULT_LIBRARY) and names:
            name = names[0]
        choices = library_choices(libraries)
        if name not in names:
            choices = [(f"{name} · new", name), *choices]
        return {
            self.library: gr.Dropdown(choices, value=name),
            self.refused: [],
            **await self._view(name),
        }

    async def choose(self, request: gr.Request, library: str | None) -> Updates:
        """Return another library, which may not exist yet."""
        return await self.load(request, library)

    async def upload(self, request: gr.Request, paths: list[str] | None, library: str | None) -> Updates:
        """Add files; each that is refused is shown with its reason, the others are queued."""
        name = _library_name(library)
        refused: list[tuple[str, str]] = []
        for path in map(Path, paths or ()):
            try:
                await self._graft.add(path.name, await asyncio.to_thread(path.read_bytes), library=name)
            except OURS as error:
                refused.append((path.name, str(error)))
            finally:
                await asyncio.to_thread(path.unlink, missing_ok=True)
        return {
            **await self.load(request, name),
            self.files: gr.File(value=None),
            self.refused: refused,
            **await self._view(name, refused),
        }

    async def poll(self, request: gr.Request, library: str | None, refused: list[tuple[str, str]]) -> Updates:
        """Return the documents as they stand now, and stop looking once none is under way."""
        return await self._view(_library_name(library), refused)

    async def delete(self, request: gr.Request, event: gr.EventData, library: str | None) -> Updates:
        """Remove a document."""
        await self._graft.delete(sent(event, "id") or "")
        return await self.load(request, library)

    async def _view(self, library: str, refused: list[tuple[str, str]] | None = None) -> Updates:
        documents = await self._graft.documents(library)
        return {
            self.documents: document_list(documents, library, refused or ()),
            self.timer: gr.Timer(POLL_S, active=under_way(documents)),
        }


def _library_name(library: str | None) -> str:
    """Return the chosen or typed name, or the default one where nothing was chosen."""
    name = " ".join(str(library or "").split())
    if len(name) > MAX_LIBRARY_CHARS:
        raise gr.Error(
            f"The library name has {len(name)} characters; the limit is {MAX_LIBRARY_CHARS}. Shorten it.",
            print_exception=False,
        )
    return name or DEFAULT_LIBRARY
