"""Ingesting files: many at a time where the platform reads them in place, else one by one."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from graft.backend import Backend, BulkBackend, Ingested
from graft.errors import NotInPlace
from retrieval.errors import IngestTimeout, InvalidDocument
from retrieval.extraction.files import read_file
from retrieval.ingestion.bulk import BulkProgress, Refused, SourceFile
from retrieval.types import Document, DocumentState, Metadata

OnProgress = Callable[[BulkProgress], None]

_log = logging.getLogger(__name__)

_WAIT_FILES = 16
"""Documents waited for at a time, where files are added one by one."""


async def ingest_sources(
    backend: Backend,
    files: Sequence[SourceFile],
    *,
    library: str,
    tenant: str,
    metadata: Metadata | None,
    wait: bool,
    timeout_s: float | None,
    on_progress: OnProgress | None,
) -> Ingested:
    """Return what became of files; of those with one name the last is taken.

    Args:
        backend: The platform.
        files: What to ingest.
        library: Where it goes.
        tenant: Whose it is.
        metadata: Typed fields of each; None keeps those they have.
        wait: Whether to wait until each is ready or failed; else it returns once each is stored and queued.
        timeout_s: Patience; None for as long as it takes.
        on_progress: Told now and then.

    Raises:
        InvalidMetadata: A field cannot be stored.
        IngestTimeout: The time is up; what was taken in stays, and the same call later goes on from there.
        RetrievalUnavailable: A shard does not answer or has no room; what was stored before is kept.
    """
    sources = list({file.name: file for file in files}.values())
    ingestion = _Ingestion(backend, sources, library, tenant, metadata, on_progress)
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await ingestion.run(wait)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise IngestTimeout(
            f"{len(sources):,} files are not all ingested after {timeout_s:g} s; what was taken in stays: "
            "ingest the same paths again to go on, or give more time"
        ) from error


def unreadable(found: Ingested) -> InvalidDocument:
    """Return the error that names files that are no document."""
    num_refused, num_files = len(found.refused), len(found.refused) + len(found.documents)
    causes = "; ".join(refused.cause for refused in found.refused[:3])
    more = f"; and {num_refused - 3:,} more" if num_refused > 3 else ""
    others = ", all others are in" if found.documents else ""
    return InvalidDocument(f"{num_refused:,} of {num_files:,} files cannot be read{others}: {causes}{more}")


class _Ingestion:
    """One call; `progress` is how far it is."""

    def __init__(
        self,
        backend: Backend,
        files: Sequence[SourceFile],
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._backend = backend
        self._files = files
        self._library = library
        self._tenant = tenant
        self._metadata = metadata
        self._on_progress = on_progress
        self._began_s = time.monotonic()
        self._progress = BulkProgress(num_files=len(files))

    async def run(self, wait: bool) -> Ingested:
        """Ingest the files, and wait for them if that is wanted."""
        self._tell()  # The first block may take a while.
        backend = self._backend
        # Handing over many at a time is waiting for them: nothing is queued that would go on by itself.
        if wait and isinstance(backend, BulkBackend):
            least = backend.bulk_files
            if least is not None and len(self._files) >= least:
                try:
                    return await backend.ingest_files(
                        self._files,
                        library=self._library,
                        tenant=self._tenant,
                        metadata=self._metadata,
                        on_progress=self._on_progress,
                    )
                except NotInPlace as error:
                    _log.info("%d files are added one by one: %s", len(self._files), error)
                    self._progress = replace(self._progress, sent_because=str(error))
        return await self._one_by_one(wait)

    async def _one_by_one(self, wait: bool) -> Ingested:
        added: list[Document] = []
        refused: list[Refused] = []
        for file in self._files:
            try:
                added.append(await self._add(file))
            except InvalidDocument as error:
                refused.append(Refused(file.name, str(error)))
                done = self._progress.files_done + 1
                self._tell(refused[-1:], files_done=done, num_refused=len(refused))
            self._tell(files_read=len(added) + len(refused))
        if not wait:
            return Ingested(tuple(added), tuple(refused))
        documents: list[Document] = []
        for start in range(0, len(added), _WAIT_FILES):
            ids = [document.document_id for document in added[start : start + _WAIT_FILES]]
            settled = await self._backend.store.wait_ready(ids, timeout_s=math.inf, tenant=self._tenant)
            failed = [one for one in settled if one.state is DocumentState.FAILED]
            documents += settled
            self._tell(
                [Refused(one.name, one.error or "") for one in failed],
                files_done=self._progress.files_done + len(settled),
                num_ready=self._progress.num_ready + len(settled) - len(failed),
                num_failed=self._progress.num_failed + len(failed),
                num_chunks=self._progress.num_chunks + sum(one.num_chunks for one in settled),
            )
        return Ingested(tuple(documents), tuple(refused))

    async def _add(self, file: SourceFile) -> Document:
        data = await asyncio.to_thread(read_file, file.path, self._backend.max_document_bytes)
        return await self._backend.store.add(
            file.name, data, library=self._library, tenant=self._tenant, metadata=self._metadata
        )

    def _tell(self, failures: Sequence[Refused] = (), **counts: int) -> None:
        seconds = time.monotonic() - self._began_s
        self._progress = replace(self._progress, seconds=seconds, **counts)  # pyright: ignore[reportArgumentType]
        if self._on_progress is not None:
            self._on_progress(replace(self._progress, failures=tuple(failures)))
