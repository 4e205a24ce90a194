"""The open document: a drawer over both tabs, opened by a citation or from the library."""

from __future__ import annotations

from uuid import uuid4

import gradio as gr

from ui.access import Gate, sent
from ui.client import GraftClient
from ui.sources import Place, document_view
from ui.theme import FOLDER


class Reader:
    """Shows a document with its quote marked. Built inside a Blocks context, outside the tabs."""

    def __init__(self, graft: GraftClient, gate: Gate) -> None:
        self._graft = graft
        self.drawer = gr.HTML(
            elem_id="reader",
            js_on_load=(FOLDER / "reader.js").read_text(encoding="utf-8"),
            apply_default_css=False,
        )
        self.drawer.open_document(
            gate(self.open_document), outputs=self.drawer, show_progress="hidden", api_visibility="private"
        )

    async def open_document(self, request: gr.Request, event: gr.EventData) -> str:
        """Return the document a button of class `opens` names, its quote marked where it names one."""
        place = Place.from_text(sent(event, "place") or "")
        document = await self._graft.document(place.document_id)
        text = await self._graft.text(place.document_id)
        return document_view(document, text, place, uuid4().hex)
