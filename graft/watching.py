"""Following a folder: what appears or changes is ingested, what is removed while it is watched is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from graft.backend import Ingested
from graft.bulk import OnProgress
from graft.folders import DOCUMENT_SUFFIXES, document_files, document_name
from graft.sdk import AsyncGraft
from retrieval.errors import InvalidDocument, UnknownDocument
from retrieval.ingestion.bulk import SourceFile
from retrieval.types import DEFAULT_LIBRARY, DocumentState, Metadata

Change = Literal["ready", "failed", "deleted", "refused"]
SETTLE_MS = 400
"""A file is read once nothing in the folder has changed for this long."""
RETRY_S = 2.0
"""A file that was being written while it was read is tried again after this."""


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
    graft: AsyncGraft,
    folder: Path,
    *,
    library: str = DEFAULT_LIBRARY,
    metadata: Metadata | None = None,
    on_progress: OnProgress | None = None,
) -> AsyncIterator[Watched]:
    """Ingest a folder, then follow it until the iterator is closed.

    A document is deleted when its file is removed during the watch, not when it was gone before: what was
    added to the library in another way stays.

    Args:
        graft: The platform.
        folder: The folder, with its subfolders.
        library: Where the documents go.
        metadata: Typed fields of every one of them; None keeps those they have.
        on_progress: Told how far the files found at the start, and those that changed together, are.

    Raises:
        InvalidDocument: The folder does not exist.
    """
    folder = await asyncio.to_thread(folder.resolve)
    if not await asyncio.to_thread(folder.is_dir):
        raise InvalidDocument(f"'{folder}' is not a folder; `--watch` follows a folder")
    async with _Changes(folder) as changes:
        batch = await asyncio.to_thread(_files_below, folder)
        while True:
            files: list[SourceFile] = []
            for path in sorted(batch):
                name = document_name(path, folder)
                if not await asyncio.to_thread(path.exists):
                    if await _delete(graft, name, library):
                        yield Watched(name, "deleted")
                elif (await asyncio.to_thread(path.resolve)).is_relative_to(folder):
                    files.append(SourceFile(name, path))
                else:
                    cause = f"'{path}' leads outside the folder '{folder}'; copy the file into it"
                    yield Watched(name, "refused", cause)
            batch = set()
            found = Ingested((), ())
            if files:
                found = await graft.ingest_files(
                    files, library=library, metadata=metadata, on_progress=on_progress
                )
            for document in found.documents:
                ready = document.state is DocumentState.READY
                yield Watched(document.name, "ready" if ready else "failed", document.error)
            for refused in found.refused:
                path = folder / refused.name
                if "while it was being read" in refused.cause or not await asyncio.to_thread(path.exists):
                    batch.add(path)
                else:
                    yield Watched(refused.name, "refused", refused.cause)
            # What was written while it was read is looked at again even if nothing changes any more.
            batch |= await changes.next(RETRY_S if batch else None)


class _Changes:
    """The files of a folder that changed, collected from the moment this is entered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: set[Path] = set()
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._collecting = asyncio.create_task(self._collect(), name="watch-folder")
        await asyncio.sleep(0)  # The task begins to watch before it waits for the first time.
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collecting.cancel()
        await asyncio.wait({self._collecting})

    async def next(self, timeout_s: float | None) -> set[Path]:
        """Return what changed since the last call, once something did or the time is up."""
        waiting = asyncio.create_task(self._more.wait())
        try:
            await asyncio.wait(
                {waiting, self._collecting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if self._collecting.done():
            self._collecting.result()  # It never ends by itself: this raises why it cannot go on.
        self._more.clear()
        changed, self._paths = self._paths, set()
        return changed

    async def _collect(self) -> None:
        from watchfiles import awatch

        async for changes in awatch(self._folder, debounce=SETTLE_MS):
            found = {Path(path) for _, path in changes if _is_document(Path(path))}
            if found:
                self._paths |= found
                self._more.set()


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
