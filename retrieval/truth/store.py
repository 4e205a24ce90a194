"""The truth of a shard: documents, records, index versions and the change log, in one SQLite file.

Every write is one transaction, acknowledged after its commit. Indexes read it through `snapshot` (see
`snapshot.py`); replicas follow it through `changes_since` and `apply` (see `oplog.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retrieval.errors import UnknownDocument
from retrieval.truth import documents, holdings, oplog, records, registry
from retrieval.truth.database import Database
from retrieval.truth.documents import Finished, StoredText, Work, document_id_of
from retrieval.truth.folder_lock import FolderLock
from retrieval.truth.holdings import Holding
from retrieval.truth.snapshot import Snapshot
from retrieval.truth.version_tables import Embedded, StoredVersion, prune_terms, rows_of
from retrieval.types import (
    Document,
    DocumentState,
    DocumentText,
    Library,
    Metadata,
    Record,
)
from retrieval.versions import VersionInfo, VersionSpec, VersionState

__all__ = [
    "DATABASE_NAME",
    "Embedded",
    "Finished",
    "Holding",
    "Store",
    "StoredText",
    "Work",
    "document_id_of",
]

DATABASE_NAME = "shard.sqlite3"
_PRUNE_ROWS = 500
_COPY_CHUNKS = 1000


class Store:
    """One shard's SQLite file. All methods block and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open or create the shard in `folder`; documents a crash left half-way go back to the queue.

        Raises:
            IndexUnavailable: Another process has it open, or the file is damaged or not ours.
            StorageFull: The disk has no room for it.
        """
        self.path = folder / DATABASE_NAME
        self._folder_lock = FolderLock(folder)
        try:
            self._database = Database(self.path)
            with self._database.write() as db:
                documents.requeue_unfinished(db)
        except BaseException:
            self._folder_lock.release()
            raise

    def close(self) -> None:
        """Close the file; every acknowledged write is already durable."""
        self._database.close()
        self._folder_lock.release()

    @property
    def database(self) -> Database:
        """Return the file's connections, for indexes that keep tables of their own in it."""
        return self._database

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yield one consistent view, on a connection of its own; any number may be open at once."""
        with self._database.read() as db:
            yield Snapshot(db)

    def seq(self) -> int:
        """Return the log's last position."""
        with self._database.read() as db:
            return oplog.last_seq(db)

    def backup(self, path: Path) -> None:
        """Write a consistent copy of the file to `path`; see `Database.backup`."""
        self._database.backup(path)

    # Index versions.

    def make_version(self, spec: VersionSpec) -> StoredVersion:
        """Return the version of a spec, made if it is not here: building, or active if it is the first."""
        with self._database.write() as db:
            return registry.make(db, spec)

    def configure(self, spec: VersionSpec) -> StoredVersion:
        """Return the version of the configuration, made the target where it changed; see `registry`."""
        with self._database.write() as db:
            return registry.configure(db, spec)

    def target_version(self) -> str | None:
        """Return the id of the version that is switched to as soon as it is built, if there is one."""
        with self._database.read() as db:
            return registry.target_of(db)

    def epoch(self) -> int:
        """Return how many times the version that answers was switched."""
        with self._database.read() as db:
            return registry.epoch_of(db)

    def version(self, name: str | None = None) -> StoredVersion:
        """Return a version by id or alias, the active one for None; raises UnknownVersion."""
        with self._database.read() as db:
            return registry.find(db, name)

    def stored_versions(self) -> list[StoredVersion]:
        """Return the versions with their numbers, oldest first."""
        with self._database.read() as db:
            return registry.all_versions(db)

    def named_versions(self) -> list[registry.NamedVersion]:
        """Return the versions and their aliases, oldest first, at no more cost than there are versions."""
        with self._database.read() as db:
            return registry.named(db)

    def versions(self) -> list[VersionInfo]:
        """Return the versions and how far each is, oldest first."""
        with self._database.read() as db:
            return registry.infos(db)

    def set_state(self, name: str, state: VersionState) -> StoredVersion:
        """Move a version to a state; see `registry.set_state` for what is refused."""
        with self._database.write() as db:
            return registry.set_state(db, name, state)

    @contextlib.contextmanager
    def switching(self, name: str) -> Iterator[StoredVersion]:
        """Yield a version made active in a transaction that ends with the block; writes wait meanwhile.

        An error inside the block leaves everything as it was. See `registry.set_state` for what is refused.
        """
        with self._database.write() as db:
            yield registry.set_state(db, name, VersionState.ACTIVE)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold every other write back until the block ends."""
        with self._database.write():
            yield

    def drop_version(self, name: str) -> None:
        """Remove a version that does not answer, with its tables."""
        with self._database.write() as db:
            registry.drop(db, name)

    def drop_retired(self, names: Sequence[str]) -> list[StoredVersion]:
        """Remove those of the versions that are retired and that nothing names; return the ones removed."""
        with self._database.write() as db:
            return registry.drop_retired(db, names)

    def set_alias(self, alias: str, name: str | None) -> None:
        """Point an alias to a version; None removes it."""
        with self._database.write() as db:
            registry.set_alias(db, alias, name)

    def count_lacking(self, number: int) -> int:
        """Return how many documents a version lacks."""
        with self._database.read() as db:
            return registry.count_lacking(db, number)

    def lacking(
        self, number: int, after_document_id: str = "", limit: int = 256, since_seq: int = 0
    ) -> list[str]:
        """Return ids of documents a version lacks, ascending, after an id.

        Args:
            number: The version.
            after_document_id: Where to go on.
            limit: Most ids returned.
            since_seq: Log position at which it lacked nothing; only what changed since is looked at.
        """
        with self._database.read() as db:
            return registry.lacking(db, number, after_document_id, limit, since_seq)

    def prune_terms(self, number: int, up_to_row_id: int) -> None:
        """Forget the terms of rows that a lexical base segment holds, in small transactions."""
        done = False
        while not done:
            with self._database.write(durable=False) as db:  # Terms that came back would do no harm.
                done = prune_terms(db, number, up_to_row_id, _PRUNE_ROWS)

    # Documents.

    def add(
        self,
        tenant: str,
        library: str,
        name: str,
        media_type: str,
        data: bytes,
        metadata: Metadata | None = None,
    ) -> Document:
        """Store a file and queue it, unless these very bytes are here; metadata None leaves them as they are.

        Raises:
            InvalidMetadata: A field cannot be stored.
            StorageFull: The disk has no room; nothing was stored.
        """
        with self._database.write() as db:
            return documents.add(db, tenant, library, name, media_type, data, metadata)

    def upsert(
        self, tenant: str, library: str, rows: Sequence[Record], embedded: Mapping[int, records.Vectors]
    ) -> int:
        """Store records, searchable at once, and return the log position; see `records.upsert`."""
        prepared = records.prepare(tenant, library, rows, embedded, self.stored_versions())
        with self._database.write() as db:
            return records.upsert(db, prepared)

    def delete(self, document_id: str, tenant: str) -> int:
        """Remove a document from every table, in one transaction; return the log position.

        Raises:
            UnknownDocument: No such document, or it is another tenant's.
            StorageFull: The disk has no room for the log of the change; nothing was removed.
        """
        with self._database.write() as db:
            content_hash = documents.read(db, document_id, tenant).content_hash
            oplog.remove(db, [document_id])
            return oplog.log(db, "delete", [(document_id, content_hash)], oplog.ALL_VERSIONS)

    def document(self, document_id: str, tenant: str) -> Document:
        """Return one document; raises UnknownDocument."""
        with self._database.read() as db:
            return documents.read(db, document_id, tenant)

    def documents_by_id(self, document_ids: Sequence[str], tenant: str) -> list[Document]:
        """Return documents in the order asked for; raises UnknownDocument."""
        with self._database.read() as db:
            return [documents.read(db, document_id, tenant) for document_id in document_ids]

    def documents(self, library: str | None, tenant: str) -> list[Document]:
        """Return documents ordered by name."""
        with self._database.read() as db:
            return documents.in_library(db, library, tenant)

    def libraries(self, tenant: str) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        with self._database.read() as db:
            return documents.libraries(db, tenant)

    def text(self, document_id: str, tenant: str) -> DocumentText:
        """Return the text of the bytes that answer; raises UnknownDocument."""
        with self._database.read() as db:
            state = documents.read(db, document_id, tenant).state
            found = documents.stored_text(db, document_id)
            if found is None:
                raise UnknownDocument(
                    f"document '{document_id}' has no text yet (state {state}); wait until it is ready"
                )
            return found.document

    def content(self, document_id: str, tenant: str) -> bytes:
        """Return the bytes that answer, or the accepted ones before any do; raises UnknownDocument."""
        with self._database.read() as db:
            documents.read(db, document_id, tenant)
            return documents.content(db, document_id)

    # Ingestion.

    def claim(self) -> Work | None:
        """Return the document queued longest, now in state `reading`; None when none is queued."""
        with self._database.read() as db:
            if not documents.is_any_queued(db):
                return None  # Every write asks; it should not make the next one wait.
        with self._database.write(durable=False) as db:
            return documents.claim(db)

    def requeue_unfinished(self) -> None:
        """Put documents that another copy of the shard was working on back into the queue."""
        with self._database.write() as db:
            documents.requeue_unfinished(db)

    def advance(self, work: Work, state: DocumentState, error: str | None = None) -> bool:
        """Set the state of a document under way; False when it was deleted or replaced meanwhile."""
        # A crash queues what is under way again, so only the end of it has to be on disk.
        with self._database.write(durable=state is DocumentState.FAILED) as db:
            return documents.advance(db, work, state, error)

    def is_current(self, work: Work) -> bool:
        """Return whether these bytes of the document are still wanted."""
        with self._database.read() as db:
            return documents.is_current(db, work)

    def finish(
        self,
        work: Work,
        media_type: str,
        document: DocumentText,
        embedded: Embedded,
        version: StoredVersion | None = None,
    ) -> bool:
        """Have these bytes answer in the active version.

        Args:
            work: The document.
            media_type: Its MIME type as read.
            document: Its text.
            embedded: Its chunks in `version`.
            version: The version they were made for; None for the active one.

        Returns:
            False when these bytes are no longer wanted, or `version` no longer is the active one.

        Raises:
            ValueError: The vectors are not the active version's embedder's, or not finite.
            StorageFull: The disk has no room; what answered before still does.
        """
        finished = [documents.Finished(work, media_type, document, embedded)]
        return self.finish_all(finished, version or self.version())[0]

    def finish_all(self, finished: Sequence[Finished], version: StoredVersion) -> list[bool]:
        """Have documents answer in one transaction; see `finish`, which this does for each."""
        rows = [rows_of(version.spec, one.embedded) for one in finished]
        with self._database.write() as db:
            return [
                documents.finish(db, version, one.work, one.media_type, one.document, made)
                for one, made in zip(finished, rows, strict=True)
            ]

    def stored_text(self, document_id: str) -> StoredText | None:
        """Return the text another version's chunks are made of; None when the document does not answer."""
        with self._database.read() as db:
            return documents.stored_text(db, document_id)

    def hold(self, number: int, wanted: Sequence[Holding]) -> int:
        """Put documents that answer into another version; return how many had not changed meanwhile.

        Raises:
            ValueError: The vectors are not the version's embedder's, or not finite.
            StorageFull: The disk has no room; nothing was stored.
        """
        with self._database.read() as db:
            spec = registry.numbered(db, number).spec
        rows = [rows_of(spec, holding.embedded) for holding in wanted]
        with self._database.write() as db:
            return sum(
                holdings.hold(db, number, holding.document_id, holding.content_hash, one)
                for holding, one in zip(wanted, rows, strict=True)
            )

    def give_up(self, number: int, document_id: str, content_hash: str, error: str) -> None:
        """Note that a version cannot hold a document, and why; it fails should the version become active."""
        with self._database.write() as db:
            holdings.give_up(db, number, document_id, content_hash, error)

    def copy_rows(self, source: StoredVersion, target: StoredVersion, document_ids: Sequence[str]) -> int:
        """Fill a version from another of the same embedder and chunking; return how many were copied."""
        copied, waiting, num_chunks = 0, list[Holding](), 0
        for document_id in document_ids:
            with self._database.read() as db:
                held = holdings.held_by(db, source, document_id, target.spec.tokens != "none")
            if isinstance(held, holdings.GivenUp):
                self.give_up(target.number, held.document_id, held.content_hash, held.error)
            elif held is not None:
                waiting.append(held)
                num_chunks += len(held.embedded.chunks)
            if num_chunks >= _COPY_CHUNKS:
                copied += self.hold(target.number, waiting)
                waiting, num_chunks = [], 0
        return copied + (self.hold(target.number, waiting) if waiting else 0)

    def queue(self, library: str | None, tenant: str) -> documents.Queue:
        """Return how many documents are in which state, and how much lies ahead of the last one."""
        with self._database.read() as db:
            return documents.queue(db, library, tenant)

    def num_under_way(self) -> int:
        """Return the documents of everyone that are neither ready nor failed."""
        with self._database.read() as db:
            return documents.num_under_way(db)

    # Replication.

    def changes_since(self, seq: int, limit: int = 256) -> oplog.Batch:
        """Return the next changes after a log position with everything a replica needs."""
        with self._database.read() as db:
            return oplog.read_batch(db, seq, limit)

    def apply(self, batch: oplog.Batch) -> int:
        """Take up a primary's batch, once however often it comes; return this log's position."""
        with self._database.write() as db:
            return oplog.apply_batch(db, batch)

    def whole_documents(self, document_ids: Sequence[str]) -> list[oplog.WholeDocument]:
        """Return everything of documents, for another shard to adopt."""
        with self._database.read() as db:
            return oplog.read_documents(db, document_ids)

    def adopt(self, whole: Sequence[oplog.WholeDocument], gone: Sequence[str] = ()) -> int:
        """Take in documents of another shard, in the versions both have; return the log position.

        Args:
            whole: What to put in place of documents of the same ids.
            gone: Ids of documents that shard no longer has.
        """
        with self._database.write() as db:
            documents.learn_fields(db, [one.metadata for one in whole])
            oplog.write_documents(db, [*(one.document_id for one in whole), *gone], whole)
            oplog.log(db, "delete", [(document_id, "") for document_id in gone], oplog.ALL_VERSIONS)
            names = [(one.document_id, one.content_hash) for one in whole]
            return oplog.log(db, "put", names, oplog.ALL_VERSIONS)
