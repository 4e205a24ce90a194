"""Documents in the tables of a shard: queue, states, what answers, and the copies in other versions.

Functions of an open transaction; `store.py` gives them one.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.errors import UnknownDocument
from retrieval.truth import oplog
from retrieval.truth.metadata import canonical, new_fields, parsed
from retrieval.truth.version_tables import Embedded, Rows, StoredVersion, insert_rows, remove_documents
from retrieval.types import Document, DocumentState, DocumentText, Library, Metadata
from retrieval.versions import VersionState

_ID_HEX_DIGITS = 20
_DOCUMENT_COLUMNS = (
    "d.document_id, library, name, media_type, d.content_hash, num_bytes, state, d.error, num_pages,"
    " created_s, updated_s, metadata"
)
_UNDER_WAY = (DocumentState.READING, DocumentState.CHUNKING, DocumentState.EMBEDDING)


@dataclass(frozen=True, slots=True)
class Work:
    """A document taken from the queue."""

    document_id: str
    """The document."""
    content_hash: str
    """The bytes being worked on."""
    name: str
    """Its name."""
    data: bytes
    """Those bytes."""
    tenant: str = ""
    """Its tenant."""
    library: str = ""
    """Its library."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A document that was read, cut and embedded."""

    work: Work
    """The document."""
    media_type: str
    """Its MIME type as read."""
    document: DocumentText
    """Its text."""
    embedded: Embedded
    """Its chunks in the version they were made for."""


@dataclass(frozen=True, slots=True)
class StoredText:
    """The text that a document's answering chunks are made of."""

    content_hash: str
    """Of the bytes."""
    name: str
    """The document's name."""
    document: DocumentText
    """The text."""
    is_record: bool
    """Whether it is one chunk as it stands."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Where the documents of a library stand."""

    num_documents: int
    """All."""
    num_ready: int
    """Those that searches find, as accepted last."""
    num_failed: int
    """Those that failed."""
    num_under_way: int
    """Those queued or being worked on."""
    bytes_ahead: int
    """Bytes to work through until the last of them is done, other libraries' before it included."""


def document_id_of(tenant: str, library: str, name: str) -> str:
    """Return the id of the document that has this name."""
    return hashlib.sha256("\0".join((tenant, library, name)).encode()).hexdigest()[:_ID_HEX_DIGITS]


def requeue_unfinished(db: sqlite3.Connection) -> None:
    """Queue what a crash left half-way."""
    db.execute(
        f"UPDATE documents SET state=? WHERE state IN ({','.join('?' * len(_UNDER_WAY))})",
        (DocumentState.QUEUED, *_UNDER_WAY),
    )


def learn_fields(db: sqlite3.Connection, metadatas: Sequence[Metadata]) -> None:
    """Give new metadata fields their type; raises InvalidMetadata where a value has another."""
    if not any(metadatas):
        return
    known = dict(map(tuple, db.execute("SELECT name, type FROM fields").fetchall()))
    db.executemany("INSERT INTO fields VALUES (?,?)", new_fields(metadatas, known).items())


def add(
    db: sqlite3.Connection,
    tenant: str,
    library: str,
    name: str,
    media_type: str,
    data: bytes,
    metadata: Metadata | None,
) -> Document:
    """Store a file and queue it, unless these very bytes are here already."""
    document_id = document_id_of(tenant, library, name)
    content_hash = hashlib.sha256(data).hexdigest()
    described = None if metadata is None else canonical(metadata)
    learn_fields(db, [metadata or {}])
    row = db.execute(
        "SELECT kind, metadata, content_hash, active_hash, state FROM documents WHERE document_id=?",
        (document_id,),
    ).fetchone()
    now = time.time()
    if row is None:
        db.execute(
            "INSERT INTO documents(document_id, tenant, library, name, kind, media_type, metadata,"
            " content_hash, num_bytes, state, created_s, updated_s) VALUES (?,?,?,?,'file',?,?,?,?,?,?,?)",
            (document_id, tenant, library, name, media_type, described or "{}", content_hash, len(data),
             DocumentState.QUEUED, now, now),
        )  # fmt: skip
        oplog.log(db, "put", [(document_id, content_hash)], None)
    else:
        if described is not None and described != row["metadata"]:
            db.execute(
                "UPDATE documents SET metadata=?, updated_s=? WHERE document_id=?",
                (described, now, document_id),
            )
            oplog.log(db, "put", [(document_id, content_hash)], oplog.ALL_VERSIONS)
        if row["content_hash"] != content_hash or row["state"] == DocumentState.FAILED:
            # Bytes that already answer need no work: a pending or failed replacement is dropped.
            answers = row["active_hash"] == content_hash and _is_held(db, document_id)
            state = DocumentState.READY if answers else DocumentState.QUEUED
            db.execute(
                "UPDATE documents SET content_hash=?, media_type=?, num_bytes=?, state=?, error=NULL,"
                " updated_s=? WHERE document_id=?",
                (content_hash, media_type, len(data), state, now, document_id),
            )
            db.execute(
                "DELETE FROM contents WHERE document_id=? AND content_hash NOT IN (?, ?)",
                (document_id, content_hash, row["active_hash"] or content_hash),
            )
            oplog.log(db, "put", [(document_id, content_hash)], None)
    db.execute("INSERT OR IGNORE INTO contents VALUES (?,?,?)", (document_id, content_hash, data))
    return read(db, document_id, tenant)


def is_any_queued(db: sqlite3.Connection) -> bool:
    """Return whether a document waits for its turn."""
    return db.execute("SELECT 1 FROM documents WHERE state='queued' LIMIT 1").fetchone() is not None


def claim(db: sqlite3.Connection) -> Work | None:
    """Return the document queued longest, now in state `reading`."""
    row = db.execute(
        "SELECT document_id, content_hash, name, data, tenant, library FROM documents JOIN contents"
        " USING (document_id, content_hash) WHERE state='queued' ORDER BY updated_s, document_id LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    work = Work(*row)
    advance(db, work, DocumentState.READING, None)
    return work


def advance(db: sqlite3.Connection, work: Work, state: DocumentState, error: str | None) -> bool:
    """Set the state of a document under way; False when it was deleted or replaced meanwhile."""
    changed = db.execute(
        "UPDATE documents SET state=?, error=?, updated_s=? WHERE document_id=? AND content_hash=?"
        " AND state<>?",
        (state, error, time.time(), work.document_id, work.content_hash, DocumentState.READY),
    )
    if changed.rowcount == 1 and state is DocumentState.FAILED:
        oplog.log(db, "put", [(work.document_id, work.content_hash)], None)
    return changed.rowcount == 1


def is_current(db: sqlite3.Connection, work: Work) -> bool:
    """Return whether these bytes of the document are still wanted."""
    return db.execute(
        "SELECT 1 FROM documents WHERE document_id=? AND content_hash=? AND state<>?",
        (work.document_id, work.content_hash, DocumentState.READY),
    ).fetchone() is not None  # fmt: skip


def finish(
    db: sqlite3.Connection,
    version: StoredVersion,
    work: Work,
    media_type: str,
    document: DocumentText,
    rows: Rows,
) -> bool:
    """Have these bytes answer in the active version; False when they are no longer wanted."""
    still = db.execute("SELECT state FROM versions WHERE number=?", (version.number,)).fetchone()
    if still is None or still[0] != VersionState.ACTIVE or not is_current(db, work):
        return False
    remove_documents(db, version.number, [work.document_id])
    insert_rows(db, version.number, [(work.document_id, work.content_hash)], [rows])
    db.execute(
        "DELETE FROM contents WHERE document_id=? AND content_hash<>?", (work.document_id, work.content_hash)
    )
    db.execute(
        "INSERT OR REPLACE INTO texts(document_id, page_starts, text) VALUES (?,?,?)",
        (work.document_id, json.dumps(document.page_starts), document.text),
    )
    db.execute(
        "UPDATE documents SET kind='file', state=?, error=NULL, active_hash=content_hash, media_type=?,"
        " num_pages=?, updated_s=? WHERE document_id=?",
        (DocumentState.READY, media_type, len(document.page_starts) or None, time.time(), work.document_id),
    )
    oplog.log(db, "put", [(work.document_id, work.content_hash)], version.number)
    return True


def read(db: sqlite3.Connection, document_id: str, tenant: str) -> Document:
    """Return one document; raises UnknownDocument."""
    row = db.execute(f"{_select(db)} WHERE d.document_id=? AND tenant=?", (document_id, tenant)).fetchone()
    if row is None:
        raise UnknownDocument(f"no document '{document_id}'; list the documents to see what there is")
    return _document(row)


def in_library(db: sqlite3.Connection, library: str | None, tenant: str) -> list[Document]:
    """Return documents ordered by name."""
    only = "" if library is None else " AND library=:library"
    rows = db.execute(
        f"{_select(db)} WHERE tenant=:tenant{only} ORDER BY name, library",
        {"tenant": tenant, "library": library},
    )
    return [_document(row) for row in rows]


def libraries(db: sqlite3.Connection, tenant: str) -> list[Library]:
    """Return the tenant's libraries ordered by name."""
    num_chunks, join = _active_chunks(db)
    rows = db.execute(
        f"SELECT library, count(*), count(active_hash), sum({num_chunks}) FROM documents AS d{join}"
        " WHERE tenant=? GROUP BY library ORDER BY library",
        (tenant,),
    )
    return [Library(*row) for row in rows]


def queue(db: sqlite3.Connection, library: str | None, tenant: str) -> Queue:
    """Return how many documents are in which state, and how much lies ahead of the last one."""
    only = "" if library is None else " AND library=:library"
    where = {"tenant": tenant, "library": library}
    counts = dict(
        map(
            tuple,
            db.execute(
                f"SELECT state, count(*) FROM documents WHERE tenant=:tenant{only} GROUP BY state", where
            ).fetchall(),
        )
    )
    # The queue is one for all: what waits before the last of these has its turn first.
    ahead = db.execute(
        "SELECT coalesce(sum(num_bytes), 0) FROM documents WHERE state NOT IN ('ready', 'failed')"
        " AND updated_s <= (SELECT max(updated_s) FROM documents WHERE state NOT IN ('ready', 'failed')"
        f" AND tenant=:tenant{only})",
        where,
    ).fetchone()[0]
    num_documents = sum(counts.values())
    num_ready, num_failed = counts.get(DocumentState.READY, 0), counts.get(DocumentState.FAILED, 0)
    return Queue(num_documents, num_ready, num_failed, num_documents - num_ready - num_failed, ahead)


def num_under_way(db: sqlite3.Connection) -> int:
    """Return the documents that are neither ready nor failed."""
    query = "SELECT count(*) FROM documents WHERE state NOT IN ('ready', 'failed')"
    return db.execute(query).fetchone()[0]


def stored_text(db: sqlite3.Connection, document_id: str) -> StoredText | None:
    """Return the text that a document's answering chunks are made of; None when none answer."""
    row = db.execute(
        "SELECT active_hash, name, page_starts, text FROM documents LEFT JOIN texts USING (document_id)"
        " WHERE document_id=? AND active_hash IS NOT NULL",
        (document_id,),
    ).fetchone()
    if row is None:
        return None
    if row["text"] is not None:
        text = DocumentText(row["text"], tuple(json.loads(row["page_starts"])))
        return StoredText(row["active_hash"], row["name"], text, is_record=False)
    return StoredText(
        row["active_hash"], row["name"], DocumentText(_record_text(db, document_id)), is_record=True
    )


def content(db: sqlite3.Connection, document_id: str) -> bytes:
    """Return the bytes that answer, or the accepted ones before any do."""
    row = db.execute(
        "SELECT data FROM contents JOIN documents USING (document_id) WHERE document_id=?"
        " AND contents.content_hash=coalesce(active_hash, documents.content_hash)",
        (document_id,),
    ).fetchone()
    return row[0] if row is not None else _record_text(db, document_id).encode()


def _record_text(db: sqlite3.Connection, document_id: str) -> str:
    """Return the text of a record: its chunk in whichever version holds the bytes that answer."""
    for row in db.execute("SELECT number FROM versions ORDER BY state<>'active', number").fetchall():
        found = db.execute(
            f"SELECT text FROM chunks_{row[0]} AS c JOIN documents AS d USING (document_id)"
            " WHERE document_id=? AND c.content_hash=d.active_hash",
            (document_id,),
        ).fetchone()
        if found is not None:
            return found[0]
    raise UnknownDocument(f"document '{document_id}' has no text in any index version; add it again")


def _is_held(db: sqlite3.Connection, document_id: str) -> bool:
    """Return whether the active version has chunks of a document's answering bytes."""
    active = db.execute("SELECT number FROM versions WHERE state='active'").fetchone()
    return active is not None and db.execute(
        f"SELECT 1 FROM held_{active[0]} WHERE document_id=? AND error IS NULL", (document_id,)
    ).fetchone() is not None  # fmt: skip


def _select(db: sqlite3.Connection) -> str:
    num_chunks, join = _active_chunks(db)
    return f"SELECT {_DOCUMENT_COLUMNS}, {num_chunks} AS num_chunks FROM documents AS d{join}"


def _active_chunks(db: sqlite3.Connection) -> tuple[str, str]:
    """Return an expression for a document's answering chunks, and the join that it needs."""
    active = db.execute("SELECT number FROM versions WHERE state='active'").fetchone()
    if active is None:
        return "0", ""
    return "coalesce(h.num_chunks, 0)", f" LEFT JOIN held_{active[0]} AS h ON h.document_id=d.document_id"


def _document(row: sqlite3.Row) -> Document:
    values = dict(row)
    return Document(
        **{**values, "state": DocumentState(values["state"]), "metadata": parsed(values["metadata"])}
    )
