"""Ingesting many files at once, where the platform can read them by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from graft.backend import Backend, BulkBackend
from retrieval.errors import IngestTimeout, InvalidDocument
from retrieval.ingestion.bulk import BulkProgress, SourceFile
from retrieval.types import Document, Metadata


async def ingest_many(
    backend: Backend,
    files: Sequence[SourceFile],
    *,
    library: str,
    tenant: str,
    metadata: Metadata | None,
    timeout_s: float,
    on_progress: Callable[[BulkProgress], None] | None,
) -> list[Document] | None:
    """Return the documents once each is ready or failed; None where files have to be added one by one.

    That is so where they are few, where the platform is a remote one, and while a version of another embedder
    answers. Of files with one name the last is taken.

    Raises:
        InvalidDocument: Some files cannot be read; all others are in.
        IngestTimeout: The time is up; what is ready stays, and the same call later goes on from there.
    """
    if not isinstance(backend, BulkBackend) or len(files) < backend.bulk_files:
        return None
    by_name = {file.name: file for file in files}
    began_s = asyncio.get_running_loop().time()
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            result = await backend.ingest_files(
                list(by_name.values()),
                library=library,
                tenant=tenant,
                metadata=metadata,
                on_progress=on_progress,
            )
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise IngestTimeout(
            f"{len(by_name):,} files are not all ingested after {timeout_s:g} s; those that are ready stay: "
            "ingest the same paths again to go on, or give more time"
        ) from error
    if result is None:
        return None
    left_s = max(timeout_s - (asyncio.get_running_loop().time() - began_s), 0.0)
    documents = await backend.store.wait_ready(result.document_ids, timeout_s=left_s, tenant=tenant)
    if result.refused:
        causes = "; ".join(refused.cause for refused in result.refused[:3])
        more = f"; and {len(result.refused) - 3:,} more" if len(result.refused) > 3 else ""
        raise InvalidDocument(
            f"{len(result.refused):,} of {len(by_name):,} files cannot be read, all others are in: "
            f"{causes}{more}"
        )
    return documents
