"""Ingestion by a running platform that reads the files where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from agents.errors import InvalidQuestion
from graft.backend import Ingested
from graft.bulk import OnProgress
from graft.errors import NotInPlace, NotRunning
from graft.http_client import HttpClient
from graft.in_place import NamedFile, named
from graft.wire import from_json, to_json
from retrieval.ingestion.bulk import BulkProgress, Refused, SourceFile
from retrieval.types import Document, Metadata


async def ingest_in_place(
    http: HttpClient,
    files: Sequence[SourceFile],
    *,
    library: str,
    metadata: Metadata | None,
    on_progress: OnProgress | None,
) -> Ingested:
    """Return what became of files that the platform reads itself; leaving early ends its work.

    Raises:
        NotInPlace: It does not read them; the message says why.
        NotRunning: It stopped answering; what was taken in stays.
    """
    seen, unseen = await asyncio.to_thread(_seen, files)
    body = {
        "files": [to_json(file) for file in seen],
        "library": library,
        "metadata": None if metadata is None else dict(metadata),
    }
    try:
        found = await _told(http, body, on_progress)
    except InvalidQuestion as error:
        raise NotInPlace(str(error)) from error  # The names alone are too many bytes.
    return Ingested(found.documents, (*unseen, *found.refused))


async def _told(http: HttpClient, body: Any, on_progress: OnProgress | None) -> Ingested:
    documents: list[Document] = []
    async with aclosing(http.events("/v1/ingest", body)) as events:  # pyright: ignore[reportArgumentType]
        async for event in events:
            if event["type"] == "progress" and on_progress is not None:
                on_progress(from_json(BulkProgress, event["progress"]))
            elif event["type"] == "documents":
                documents += [from_json(Document, item) for item in event["documents"]]
            elif event["type"] == "ingested":
                refused = [from_json(Refused, item) for item in event["refused"]]
                return Ingested(tuple(documents), tuple(refused))
    raise NotRunning(
        "the platform ended the stream before all files were ingested; what was taken in stays: ingest the "
        "same paths again to go on"
    )


def _seen(files: Sequence[SourceFile]) -> tuple[list[NamedFile], list[Refused]]:
    """Return files as they are now, and those that are not there any more."""
    found: list[NamedFile] = []
    unseen: list[Refused] = []
    for file in files:
        try:
            found.append(named(file))
        except OSError as error:
            cause = f"'{file.path}' cannot be read ({error.strerror}); check the path and try again"
            unseen.append(Refused(file.name, cause))
    return found, unseen
