"""Ingesting many files through Ray Data: read and cut in parallel, embedded, and taken in by the shards.

The files' names are all that is held of the whole: their bytes pass in blocks of a few MiB, and stages wait
for the ones after them, so a folder may be larger than memory. Files are read on the node of the caller,
whose disk they are on; chunks are embedded by the platform's embedders. Each block is one transaction a
shard: a document of it goes from unknown to `ready` or `failed` at once, and one that could not be embedded
for want of an embedder is queued like one added by itself. Whatever ends the ingestion half-way, the next one
skips what is ready.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from retrieval.config import RetrievalConfig
from retrieval.ingestion.bulk import BulkProgress, BulkResult, Refused, SourceFile
from retrieval.ingestion.bulk_dataset import blocks_of, bulk_dataset, embedder_of, stage_options
from retrieval.ingestion.bulk_stages import (
    EmbedChunks,
    Known,
    Outcome,
    ReadFiles,
    Task,
    Unchanged,
    table_of,
)
from retrieval.ingestion.embedding_work import chunking_of
from retrieval.ingestion.taking_in import ReadDocument
from retrieval.truth.metadata import canonical
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, Document, DocumentState, Metadata
from retrieval.versions import VersionInfo

if TYPE_CHECKING:
    from ray.data import Dataset

    from retrieval.actor import ActorRetrieval

_GROUP_FILES = 16
_GROUP_BYTES = 4 * 1024 * 1024
"""Files, and bytes of them, that a worker reads in one task."""
_MAX_READERS = 16
_MAX_TABLES = 512
"""Objects the names are handed to Ray in."""


async def bulk_version(retrieval: ActorRetrieval, config: RetrievalConfig) -> VersionInfo | None:
    """Return the index version to ingest for; None where its embedder is not the platform's."""
    active = (await retrieval.versions())[0]
    return active if active.spec.embedder == config.embedder else None


async def bulk_ingest(
    retrieval: ActorRetrieval,
    config: RetrievalConfig,
    version: VersionInfo,
    files: Sequence[SourceFile],
    *,
    library: str = DEFAULT_LIBRARY,
    tenant: str = DEFAULT_TENANT,
    metadata: Metadata | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkResult:
    """Ingest files and return what became of them; those that are ready already are read, not embedded.

    Args:
        retrieval: The platform's index.
        config: Its settings.
        version: What `bulk_version` returned.
        files: Files on a disk of this node.
        library: Where they go.
        tenant: Whose they are.
        metadata: Typed fields of each; None keeps those they have.
        on_progress: Called after each block that was stored.

    Raises:
        InvalidMetadata: A field cannot be stored.
        IndexUnavailable: A shard does not answer; what was stored before is kept.
        StorageFull: A disk has no room; what was stored before is kept.
    """
    if not files:
        return BulkResult((), ())
    began_s = time.monotonic()
    wanted = None if metadata is None else canonical(metadata)
    known = {
        document.name: Known(
            document.document_id,
            document.content_hash,
            wanted is None or canonical(document.metadata) == wanted,
        )
        for document in await retrieval.documents(library=library, tenant=tenant)
        if document.state is DocumentState.READY
    }
    groups = await asyncio.to_thread(lambda: list(_grouped(files, known)))
    dataset = await asyncio.to_thread(_pipeline, groups, config, version, retrieval.embedders)
    document_ids: list[str] = []
    refused: list[Refused] = []
    progress = BulkProgress(num_files=len(files))
    async with aclosing(blocks_of(dataset)) as blocks:
        async for rows in blocks:
            outcomes = [row for row in rows if isinstance(row, Outcome)]
            read = [one for one in outcomes if isinstance(one, ReadDocument)]
            taken: list[Document] = []
            if read:
                taken = await retrieval.take_in(
                    read, version.version_id, library=library, tenant=tenant, metadata=metadata
                )
            unchanged = [one.document_id for one in outcomes if isinstance(one, Unchanged)]
            refused_now = [one for one in outcomes if isinstance(one, Refused)]
            failed_now = [
                Refused(one.name, one.error or "") for one in taken if one.state is DocumentState.FAILED
            ]
            document_ids += [document.document_id for document in taken] + unchanged
            refused += refused_now
            done = progress.files_done + len(outcomes)
            num_ready = sum(document.state is DocumentState.READY for document in taken)
            progress = replace(
                progress,
                files_read=done,
                files_done=done,
                num_ready=progress.num_ready + len(unchanged) + num_ready,
                num_failed=progress.num_failed + len(failed_now),
                num_refused=len(refused),
                num_chunks=progress.num_chunks + sum(document.num_chunks for document in taken),
                seconds=time.monotonic() - began_s,
                failures=(*failed_now, *refused_now),
            )
            if on_progress is not None:
                on_progress(progress)
    return BulkResult(tuple(document_ids), tuple(refused))


def _grouped(files: Sequence[SourceFile], known: Mapping[str, Known]) -> Iterator[list[Task]]:
    """Yield tasks in groups of bounded size; a larger file is a group by itself."""
    group: list[Task] = []
    group_bytes = 0
    for file in files:
        try:
            num_bytes = file.path.stat().st_size
        except OSError:
            num_bytes = 0  # The reader will say why it cannot be read.
        if group and (len(group) == _GROUP_FILES or group_bytes + num_bytes > _GROUP_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(Task(file, known.get(file.name)))
        group_bytes += num_bytes
    if group:
        yield group


def _pipeline(
    groups: Sequence[list[Task]], config: RetrievalConfig, version: VersionInfo, handles: Sequence[Any]
) -> Dataset:
    """Return the dataset of outcomes, not begun yet."""
    step = -(-len(groups) // _MAX_TABLES)
    tables = [table_of(groups[start : start + step]) for start in range(0, len(groups), step)]
    num_readers = max(1, min(_MAX_READERS, (os.cpu_count() or 1) - 1, len(groups)))
    dataset = bulk_dataset(tables, config)
    dataset = dataset.map_batches(
        ReadFiles,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(config, chunking_of(version.spec)),
        **stage_options(num_readers),
    )
    return dataset.map_batches(
        EmbedChunks,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(config, version.spec, embedder_of(handles, config)),
        # One more than embedders: the next texts are at hand when one is done.
        **stage_options(len(handles) + 1),
    )
