"""The truth of a shard: documents, texts, chunks and the change log, in one SQLite file.

Writes go through one connection under a lock and are acknowledged after commit (WAL, synchronous=FULL).
Searches read another connection inside one snapshot (see `snapshot.py`), so writers never make them wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.errors import IndexUnavailable, StorageFull, UnknownDocument
from retrieval.folder_lock import FolderLock
from retrieval.schema import connect, prepare
from retrieval.snapshot import Snapshot
from retrieval.types import Chunk, Document, DocumentState, DocumentText, Library, Passage

DATABASE_NAME = "shard.sqlite3"
_WRITE_CACHE_BYTES = 16 * 1024 * 1024
_SEARCH_CACHE_BYTES = 64 * 1024 * 1024
_ID_HEX_DIGITS = 20
_UNDER_WAY = (DocumentState.READING, DocumentState.CHUNKING, DocumentState.EMBEDDING)
_DOCUMENT_COLUMNS = (
    "document_id, library, name, media_type, content_hash, num_bytes, state, error, num_pages, num_chunks, "
    "created_s, updated_s"
)


@dataclass(frozen=True, slots=True)
class Work:
    """A document taken from the queue."""

    document_id: str
    """The document."""
    content_hash: str
    """The version of its bytes being worked on."""
    name: str
    """Its name."""
    data: bytes
    """Those bytes."""


def document_id_of(tenant: str, library: str, name: str) -> str:
    """Return the id of the document that has this name."""
    return hashlib.sha256("\0".join((tenant, library, name)).encode()).hexdigest()[:_ID_HEX_DIGITS]


class Store:
    """One shard's SQLite file. All methods block and may be called from any thread."""

    def __init__(self, folder: Path, index_version: str) -> None:
        """Open or create the shard in `folder`; unfinished documents go back to the queue.

        Raises:
            IndexUnavailable: Another process has it open, or the file is damaged or not ours.
            StorageFull: The disk has no room for it.
        """
        self.path = folder / DATABASE_NAME
        self._folder_lock = FolderLock(folder)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._search_lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        try:
            self._writer = self._connect(_WRITE_CACHE_BYTES)
            prepare(self._writer, self.path)
            self._reader = self._connect(_WRITE_CACHE_BYTES)
            self._searcher = self._connect(_SEARCH_CACHE_BYTES)
            self._resume(index_version)
        except sqlite3.DatabaseError as error:
            self.close()
            raise self._translated(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; every acknowledged write is already durable."""
        with self._write_lock, self._read_lock, self._search_lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
            self._folder_lock.release()

    def add(self, tenant: str, library: str, name: str, media_type: str, data: bytes) -> Document:
        """Store a file and queue it, unless these very bytes are here already.

        Raises:
            StorageFull: The disk has no room; nothing was stored.
        """
        document_id = document_id_of(tenant, library, name)
        content_hash = hashlib.sha256(data).hexdigest()
        with self._write() as db:
            row = db.execute(
                "SELECT content_hash, active_hash, state FROM documents WHERE document_id=?", (document_id,)
            ).fetchone()
            now = time.time()
            if row is None:
                db.execute(
                    "INSERT INTO documents(document_id, tenant, library, name, media_type, content_hash,"
                    " num_bytes, state, created_s, updated_s) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (document_id, tenant, library, name, media_type, content_hash, len(data),
                     DocumentState.QUEUED, now, now),
                )  # fmt: skip
            elif row["content_hash"] != content_hash or row["state"] == DocumentState.FAILED:
                # Bytes that already answer need no work: a pending or failed replacement is dropped.
                state = DocumentState.READY if row["active_hash"] == content_hash else DocumentState.QUEUED
                db.execute(
                    "UPDATE documents SET content_hash=?, media_type=?, num_bytes=?, state=?, error=NULL,"
                    " updated_s=? WHERE document_id=?",
                    (content_hash, media_type, len(data), state, now, document_id),
                )
                db.execute(
                    "DELETE FROM contents WHERE document_id=? AND content_hash NOT IN (?, ?)",
                    (document_id, content_hash, row["active_hash"] or content_hash),
                )
            db.execute("INSERT OR IGNORE INTO contents VALUES (?,?,?)", (document_id, content_hash, data))
            return _document(self._row(db, document_id, tenant))

    def delete(self, document_id: str, tenant: str) -> None:
        """Remove a document from every table, in one transaction.

        Raises:
            UnknownDocument: No such document, or it is another tenant's.
            StorageFull: The disk has no room for the log of the change; nothing was removed.
        """
        with self._write() as db:
            content_hash = self._row(db, document_id, tenant)["content_hash"]
            for table in ("chunks", "texts", "contents", "documents"):
                db.execute(f"DELETE FROM {table} WHERE document_id=?", (document_id,))
            _log(db, "delete", document_id, content_hash)

    def claim(self) -> Work | None:
        """Return the document queued longest, now in state `reading`; None when none is queued."""
        with self._write() as db:
            row = db.execute(
                "SELECT document_id, content_hash, name, data FROM documents JOIN contents"
                " USING (document_id, content_hash) WHERE state=? ORDER BY updated_s, document_id LIMIT 1",
                (DocumentState.QUEUED,),
            ).fetchone()
            if row is None:
                return None
            work = Work(*row)
            self._set_state(db, work, DocumentState.READING, None)
            return work

    def advance(self, work: Work, state: DocumentState, error: str | None = None) -> bool:
        """Set the state of a document under way; False when it was deleted or replaced meanwhile."""
        with self._write() as db:
            return self._set_state(db, work, state, error)

    def is_current(self, work: Work) -> bool:
        """Return whether this version of the document is still wanted."""
        with self._read() as db:
            return db.execute(
                "SELECT 1 FROM documents WHERE document_id=? AND content_hash=? AND state<>?",
                (work.document_id, work.content_hash, DocumentState.READY),
            ).fetchone() is not None  # fmt: skip

    def finish(
        self,
        work: Work,
        media_type: str,
        document: DocumentText,
        chunks: Sequence[Chunk],
        vectors_ND: np.ndarray,
    ) -> bool:
        """Make a version searchable in place of the one before; False when it is no longer wanted.

        Raises:
            StorageFull: The disk has no room; the version before still answers.
        """
        with self._write() as db:
            row = db.execute(
                "SELECT tenant, library, state FROM documents WHERE document_id=? AND content_hash=?",
                (work.document_id, work.content_hash),
            ).fetchone()
            if row is None or row["state"] == DocumentState.READY:
                return False
            db.execute("DELETE FROM chunks WHERE document_id=?", (work.document_id,))
            db.execute(
                "DELETE FROM contents WHERE document_id=? AND content_hash<>?",
                (work.document_id, work.content_hash),
            )
            db.execute(
                "INSERT OR REPLACE INTO texts(document_id, page_starts, text) VALUES (?,?,?)",
                (work.document_id, json.dumps(document.page_starts), document.text),
            )
            db.executemany(
                "INSERT INTO chunks(tenant, library, document_id, content_hash, ordinal, start, stop, page,"
                " text, vector) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    (row["tenant"], row["library"], work.document_id, work.content_hash, chunk.ordinal,
                     chunk.start, chunk.end, chunk.page, chunk.text, vector_D.astype("<f4").tobytes())
                    for chunk, vector_D in zip(chunks, vectors_ND, strict=True)
                ),
            )  # fmt: skip
            db.execute(
                "UPDATE documents SET state=?, error=NULL, active_hash=content_hash, media_type=?,"
                " num_pages=?, num_chunks=?, updated_s=? WHERE document_id=?",
                (DocumentState.READY, media_type, len(document.page_starts) or None, len(chunks), time.time(),
                 work.document_id),
            )  # fmt: skip
            _log(db, "put", work.document_id, work.content_hash)
            return True

    def document(self, document_id: str, tenant: str) -> Document:
        """Return one document; raises UnknownDocument."""
        with self._read() as db:
            return _document(self._row(db, document_id, tenant))

    def documents_by_id(self, document_ids: Sequence[str], tenant: str) -> list[Document]:
        """Return documents in the order asked for; raises UnknownDocument."""
        with self._read() as db:
            return [_document(self._row(db, document_id, tenant)) for document_id in document_ids]

    def documents(self, library: str | None, tenant: str) -> list[Document]:
        """Return documents ordered by name."""
        with self._read() as db:
            rows = db.execute(
                f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE tenant=:tenant"
                " AND (:library IS NULL OR library=:library) ORDER BY name, library",
                {"tenant": tenant, "library": library},
            )
            return [_document(row) for row in rows]

    def text(self, document_id: str, tenant: str) -> DocumentText:
        """Return the text of the version that answers; raises UnknownDocument."""
        with self._read() as db:
            state = self._row(db, document_id, tenant)["state"]
            row = db.execute(
                "SELECT text, page_starts FROM texts WHERE document_id=?", (document_id,)
            ).fetchone()
            if row is None:
                raise UnknownDocument(
                    f"document '{document_id}' has no text yet (state {state}); wait until it is ready"
                )
            return DocumentText(row["text"], tuple(json.loads(row["page_starts"])))

    def content(self, document_id: str, tenant: str) -> bytes:
        """Return the bytes of the version that answers, or the accepted ones before any does."""
        with self._read() as db:
            self._row(db, document_id, tenant)
            return db.execute(
                "SELECT data FROM contents JOIN documents USING (document_id)"
                " WHERE document_id=?"
                " AND contents.content_hash=coalesce(active_hash, documents.content_hash)",
                (document_id,),
            ).fetchone()[0]

    def libraries(self, tenant: str) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        with self._read() as db:
            rows = db.execute(
                "SELECT library, count(*), count(active_hash), sum(num_chunks) FROM documents WHERE tenant=?"
                " GROUP BY library ORDER BY library",
                (tenant,),
            )
            return [Library(*row) for row in rows]

    def passages(self, chunk_ids: Sequence[str], tenant: str) -> list[Passage | None]:
        """Return passages in order; None for a chunk that is gone or another tenant's."""
        with self._read() as db:
            return Snapshot(db).passages_of(chunk_ids, tenant)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yield one consistent view for a search; one at a time, which also guards the vector index."""
        with self._search_lock:
            db = self._live(self._searcher)
            db.execute("BEGIN")
            try:
                yield Snapshot(db)
            except sqlite3.DatabaseError as error:
                raise self._translated(error) from error
            finally:
                db.execute("ROLLBACK")

    def _connect(self, cache_bytes: int) -> sqlite3.Connection:
        connection = connect(self.path, cache_bytes=cache_bytes)
        self._open.append(connection)
        return connection

    def _live(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        if connection not in self._open:
            raise IndexUnavailable(f"the shard in '{self.path.parent}' is closed; open it again")
        return connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            db = self._live(self._writer)
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                raise self._translated(error) from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            try:
                yield self._live(self._reader)
            except sqlite3.DatabaseError as error:
                raise self._translated(error) from error

    def _translated(self, error: sqlite3.DatabaseError) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        free = shutil.disk_usage(self.path.parent).free
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and free < 1024 * 1024):
            return StorageFull(
                f"the disk that holds '{self.path.parent}' is full ({free:,} bytes free); nothing was "
                "stored. Free some space and try again"
            )
        return IndexUnavailable(
            f"the shard file '{self.path}' cannot be used ({error}); check the disk, restore a backup, "
            "or use another data folder"
        )

    def _resume(self, index_version: str) -> None:
        """Queue what a crash left half-way, and everything when another index version made the vectors."""
        with self._write() as db:
            made = db.execute("SELECT value FROM meta WHERE key='index_version'").fetchone()
            if made is not None and made[0] != index_version:
                # Vectors of two embedders must never meet; the stored bytes make the new ones.
                for row in db.execute("SELECT document_id, content_hash FROM documents").fetchall():
                    _log(db, "delete", *row)
                db.execute("DELETE FROM chunks")
                db.execute("DELETE FROM texts")
                db.execute(
                    "DELETE FROM contents WHERE content_hash<>(SELECT content_hash FROM documents"
                    " WHERE documents.document_id=contents.document_id)"
                )
                db.execute(
                    "UPDATE documents SET state=?, active_hash=NULL, num_chunks=0, num_pages=NULL,"
                    " error=NULL",
                    (DocumentState.QUEUED,),
                )
            db.execute("INSERT OR REPLACE INTO meta VALUES ('index_version', ?)", (index_version,))
            db.execute(
                f"UPDATE documents SET state=? WHERE state IN ({','.join('?' * len(_UNDER_WAY))})",
                (DocumentState.QUEUED, *_UNDER_WAY),
            )

    @staticmethod
    def _row(db: sqlite3.Connection, document_id: str, tenant: str) -> sqlite3.Row:
        row = db.execute(
            f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE document_id=? AND tenant=?",
            (document_id, tenant),
        ).fetchone()
        if row is None:
            raise UnknownDocument(f"no document '{document_id}'; list the documents to see what there is")
        return row

    @staticmethod
    def _set_state(db: sqlite3.Connection, work: Work, state: DocumentState, error: str | None) -> bool:
        changed = db.execute(
            "UPDATE documents SET state=?, error=?, updated_s=?"
            " WHERE document_id=? AND content_hash=? AND state<>?",
            (state, error, time.time(), work.document_id, work.content_hash, DocumentState.READY),
        )
        return changed.rowcount == 1


def _document(row: sqlite3.Row) -> Document:
    values = dict(row)
    return Document(**{**values, "state": DocumentState(values["state"])})


def _log(db: sqlite3.Connection, kind: str, document_id: str, content_hash: str) -> None:
    db.execute(
        "INSERT INTO ops(kind, document_id, content_hash, at_s) VALUES (?,?,?,?)",
        (kind, document_id, content_hash, time.time()),
    )
