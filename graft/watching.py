"""Following a folder: what appears or changes is ingested, what is removed while it is watched is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graft.folders import DOCUMENT_SUFFIXES, document_files, document_name
from graft.sdk import AsyncGraft
from retrieval.errors import InvalidDocument, UnknownDocument
from retrieval.extraction.files import read_file
from retrieval.types import DEFAULT_LIBRARY, Document, DocumentState, Metadata

if TYPE_CHECKING:
    from watchfiles.main import FileChange

Change = Literal["ready", "failed", "deleted", "refused"]
SETTLE_MS = 400
"""A file is read once nothing in the folder has changed for this long."""
RETRY_S = 2.0
"""A file that was being written while it was read is tried again after this."""
_SETTLED_S = 600.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What became of one file."""

    name: str
    """The document's name: the file's path below the folder."""
    change: Change
    """Whether it is searchable, failed, was deleted, or could not be read."""
    cause: str | None = None
    """Why it failed or was refused."""


async def watch(
    graft: AsyncGraft, folder: Path, *, library: str = DEFAULT_LIBRARY, metadata: Metadata | None = None
) -> AsyncIterator[Watched]:
    """Ingest a folder, then follow it until the iterator is closed.

    A document is deleted when its file is removed during the watch, not when it was gone before: what was
    added to the library in another way stays.

    Args:
        graft: The platform.
        folder: The folder, with its subfolders.
        library: Where the documents go.
        metadata: Typed fields of every one of them; None keeps those they have.

    Raises:
        InvalidDocument: The folder does not exist.
    """
    from watchfiles import awatch

    folder = await asyncio.to_thread(folder.resolve)
    if not await asyncio.to_thread(folder.is_dir):
        raise InvalidDocument(f"'{folder}' is not a folder; `--watch` follows a folder")
    pending = await asyncio.to_thread(_files_below, folder)
    again: set[Path] = set()
    async for changes in _changes(awatch(folder, debounce=SETTLE_MS, yield_on_timeout=True,
                                         rust_timeout=int(RETRY_S * 1000)), pending):  # fmt: skip
        batch, again = sorted(changes | again), set()
        added: list[Document] = []
        for path in batch:
            name = document_name(path, folder)
            try:
                data = await asyncio.to_thread(read_file, path, graft.max_document_bytes, root=folder)
                added.append(await graft.add(name, data, library=library, metadata=metadata))
            except InvalidDocument as error:
                if not await asyncio.to_thread(path.exists):
                    if await _delete(graft, name, library):
                        yield Watched(name, "deleted")
                elif "while it was being read" in str(error):
                    again.add(path)
                else:
                    yield Watched(name, "refused", str(error))
        for document in await graft.wait_ready([item.document_id for item in added], timeout_s=_SETTLED_S):
            ready = document.state is DocumentState.READY
            yield Watched(document.name, "ready" if ready else "failed", document.error)


async def _changes(source: AsyncIterator[set[FileChange]], first: set[Path]) -> AsyncIterator[set[Path]]:
    """Yield the files there are at the start, then those that change; an empty set when nothing did."""
    yield first
    async for changes in source:
        yield {Path(path) for _, path in changes if _is_document(Path(path))}


def _files_below(folder: Path) -> set[Path]:
    try:
        return set(document_files(folder))
    except InvalidDocument:
        return set()  # An empty folder may be filled later.


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in DOCUMENT_SUFFIXES and not path.name.startswith(".")


async def _delete(graft: AsyncGraft, name: str, library: str) -> bool:
    for document in await graft.documents(library):
        if document.name == name:
            try:
                await graft.delete(document.document_id)
            except UnknownDocument:
                return False  # Another process was faster.
            return True
    return False
