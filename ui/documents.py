"""How the documents of a library are shown."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.types import Document, DocumentState, Library
from ui.markup import escape, escape_lines

UNDER_WAY = frozenset(
    {DocumentState.QUEUED, DocumentState.READING, DocumentState.CHUNKING, DocumentState.EMBEDDING}
)
"""States a document leaves by itself."""

_PROGRESS = {
    DocumentState.QUEUED: ("Queued", 8),
    DocumentState.READING: ("Reading", 30),
    DocumentState.CHUNKING: ("Chunking", 55),
    DocumentState.EMBEDDING: ("Embedding", 60),
    DocumentState.READY: ("Ready", 100),
    DocumentState.FAILED: ("Failed", 100),
}

_KINDS = {
    "application/pdf": "PDF",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "DOCX",
    "text/markdown": "MD",
    "text/html": "HTML",
    "text/plain": "TXT",
}


def under_way(documents: Sequence[Document]) -> bool:
    """Return whether any document is still on its way to being searchable."""
    return any(document.state in UNDER_WAY for document in documents)


def library_choices(libraries: Sequence[Library]) -> list[tuple[str, str]]:
    """Return libraries as labels and values of a selector."""
    return [
        (f"{library.name} · {_plural(library.num_ready, 'document')}", library.name) for library in libraries
    ]


def document_list(
    documents: Sequence[Document], library: str, refused: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the documents of a library with their states.

    Args:
        documents: What the library holds.
        library: Its name.
        refused: Files of the last upload that were not accepted, and why.
    """
    alerts = "".join(
        f'<li role="alert"><strong>{escape(name)}</strong> was not added. {escape_lines(reason)}</li>'
        for name, reason in refused
    )
    alerts = f'<ul class="refused">{alerts}</ul>' if alerts else ""
    if not documents:
        return (
            f'<section class="documents">{alerts}<div class="empty"><h3>{escape(library)} is empty</h3>'
            "<p>Add a file above; it can be asked about as soon as it is ready.</p></div></section>"
        )
    ready = sum(document.state is DocumentState.READY for document in documents)
    chunks = sum(document.num_chunks for document in documents)
    rows = "".join(_row(document) for document in documents)
    return (
        f'<section class="documents">{alerts}<p class="summary">{_plural(len(documents), "document")}, '
        f'{ready} ready, {_plural(chunks, "passage")}</p><ul class="rows">{rows}</ul></section>'
    )


def _row(document: Document) -> str:
    label, percent = _progress(document)
    state = document.state.value
    document_id, name = escape(document.document_id), escape(document.name)
    moving = (
        f'<span class="bar" role="progressbar" aria-label="{name}: {label}" aria-valuenow="{percent}" '
        f'aria-valuemin="0" aria-valuemax="100"><i style="width:{percent}%"></i></span>'
        if document.state in UNDER_WAY
        else ""
    )
    cause = f'<p class="cause">{escape_lines(document.error)}</p>' if document.error else ""
    readable = document.state is DocumentState.READY or document.num_chunks > 0
    opens = f'class="view opens" value="{document_id}" aria-label="Read {name}"'
    view = f'<button type="button" {opens}>Read</button>' if readable else ""
    return (
        f'<li data-row data-name="{name}" data-state="{state}"><span class="kind">{_kind(document)}</span>'
        f'<span class="what"><span class="name">{name}</span><small>{_facts(document)}</small>'
        f'{moving}{cause}</span><span class="state {state}">{label}</span><span class="acts">{view}'
        f'<button type="button" class="remove" data-act="confirm" aria-label="Delete {name}">Delete</button>'
        f'<span class="sure"><span>Delete for good?</span><button type="button" '
        f'data-act="delete_document" data-id="{document_id}">Delete</button>'
        '<button type="button" data-act="keep">Keep</button></span></span></li>'
    )


def _progress(document: Document) -> tuple[str, int]:
    """Return how a document's state is called, and how long its bar is in percent."""
    label, percent = _PROGRESS[document.state]
    if document.share is None:
        return label, percent
    return f"{label} {document.share:.0%}", round(percent + document.share * (100 - percent))


def _facts(document: Document) -> str:
    parts = [_size(document.num_bytes)]
    if document.num_pages:
        parts.append(_plural(document.num_pages, "page"))
    if document.num_chunks:
        parts.append(_plural(document.num_chunks, "passage"))
    return " · ".join(parts)


def _kind(document: Document) -> str:
    known = _KINDS.get(document.media_type)
    suffix = document.name.rpartition(".")[2] if "." in document.name else ""
    return escape(known or suffix[:4].upper() or "FILE")


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
