"""What the workers of a bulk ingestion do: read and cut files, then embed. Needs no Ray.

They are classes that Ray Data calls with Arrow tables of one binary column, `row`. Reading files keeps one
child process for all of them, with the limits of a single document; a file that kills it fails alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidDocument, RetrievalUnavailable, UnreadableDocument
from retrieval.extraction.files import check_path_name, read_file
from retrieval.extraction.reading import Chunking, ReadingProcess
from retrieval.ingestion.bulk import Refused, SourceFile
from retrieval.ingestion.embedding_work import ChunkEmbedding
from retrieval.ingestion.taking_in import ReadDocument
from retrieval.truth.version_tables import Embedded
from retrieval.types import Embedder
from retrieval.versions import VersionSpec

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

COLUMN = "row"


@dataclass(frozen=True, slots=True)
class Known:
    """A document of that name that is ready."""

    document_id: str
    """Its id."""
    content_hash: str
    """Of the bytes that answer."""
    is_settled: bool
    """Whether its metadata are those wanted too."""


@dataclass(frozen=True, slots=True)
class Task:
    """One file and what is known of it."""

    file: SourceFile
    """The file."""
    known: Known | None
    """The ready document of its name; None where there is none."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A file whose bytes answer already."""

    document_id: str
    """Its document."""


Outcome = ReadDocument | Unchanged | Refused


def table_of(rows: Iterable[object]) -> pa.Table:
    """Return values as a table for Ray Data."""
    import pyarrow as pa

    return pa.table({COLUMN: pa.array([pickle.dumps(row, protocol=5) for row in rows], pa.large_binary())})


def rows_of(table: pa.Table) -> Iterator[object]:
    """Yield the values of a table made by `table_of`, one at a time."""
    for cell in table.column(COLUMN):
        yield pickle.loads(cell.as_buffer())


class ReadFiles:
    """Reads and cuts files; called with tables of lists of `Task`, yields tables of one `Outcome`."""

    def __init__(self, config: RetrievalConfig, chunking: Chunking) -> None:
        self._config = config
        self._chunking = chunking
        self._reading = ReadingProcess(config)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield what became of each file of a table's groups."""
        for group in rows_of(table):
            for task in group:  # pyright: ignore[reportGeneralTypeIssues]
                yield table_of([self.read(task)])

    def read(self, task: Task) -> Outcome:
        """Return a file's chunks, not embedded yet, or what came in between."""
        name, known = task.file.name, task.known
        try:
            check_path_name(name)
            data = read_file(task.file.path, self._config.max_document_bytes)
        except InvalidDocument as error:
            return Refused(name, str(error))
        if known is not None and known.content_hash == hashlib.sha256(data).hexdigest():
            # With other metadata it is added like a single one, which leaves its chunks as they are.
            return Unchanged(known.document_id) if known.is_settled else ReadDocument(name, data)
        try:
            media_type, document = self._reading.read(name, data)
            chunks = self._reading.chunks(name, document, self._chunking)
        except UnreadableDocument as error:
            return ReadDocument(name, data, error=str(error))
        except Exception as error:
            # The run boundary: one file must not stop the ingestion of all others.
            return _broken(ReadDocument(name, data), error)
        return ReadDocument(
            name, data, media_type, document, Embedded(chunks, np.empty((0, 0), dtype=np.float32))
        )

    def close(self) -> None:
        """Stop the child process; it ends with this process in any case."""
        self._reading.close()


class EmbedChunks:
    """Embeds what `ReadFiles` cut; called with tables of `Outcome`, returns the like."""

    def __init__(
        self, config: RetrievalConfig, spec: VersionSpec, embedder_of: Callable[[], Embedder]
    ) -> None:
        """Prepare.

        Args:
            config: Settings.
            spec: The index version to embed for.
            embedder_of: Makes its embedder, in the process and event loop where it is used.
        """
        self._runner = asyncio.Runner()
        embedder = embedder_of()
        self._work = ChunkEmbedding(lambda _: embedder, ReadingProcess(config))
        self._spec = spec

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with vectors."""
        return table_of(self.embed([row for row in rows_of(table) if isinstance(row, Outcome)]))

    def embed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the outcomes, those that were cut with vectors."""
        cut = [one for one in outcomes if isinstance(one, ReadDocument) and one.embedded is not None]
        made = dict(zip(map(id, cut), self._runner.run(self._embed(cut)), strict=True))
        return [made.get(id(one), one) for one in outcomes]

    def close(self) -> None:
        """Close the event loop; it ends with this process in any case."""
        self._runner.close()

    async def _embed(self, cut: Sequence[ReadDocument]) -> list[ReadDocument]:
        if not cut:
            return []
        chunks = [list(one.embedded.chunks) if one.embedded else [] for one in cut]
        try:
            embedded = await self._work.embed(
                self._spec, cut[0].name, [chunk for part in chunks for chunk in part]
            )
        except RetrievalUnavailable as error:
            # As when it is added by itself: it is queued, and tried again by the shard.
            _log.warning("%d files are left to the shard to embed: %s", len(cut), error)
            return [replace(one, embedded=None) for one in cut]
        except Exception as error:
            # The run boundary, as above.
            if len(cut) > 1:
                return [alone for one in cut for alone in await self._embed([one])]
            if isinstance(error, UnreadableDocument):
                return [replace(cut[0], embedded=None, error=str(error))]
            return [_broken(cut[0], error)]
        if embedded is None:
            raise RuntimeError("an embedding that nobody may stop was stopped")
        parts = embedded.split([len(part) for part in chunks])
        return [replace(one, embedded=part) for one, part in zip(cut, parts, strict=True)]


def _broken(read: ReadDocument, error: Exception) -> ReadDocument:
    _log.error("'%s' could not be ingested", read.name, exc_info=error)
    what = f"{type(error).__name__}: {error}"
    reason = f"'{read.name}' could not be ingested ({what}); please report this"
    return replace(read, embedded=None, error=reason)
