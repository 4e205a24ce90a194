"""Taking in documents that were read, cut and embedded elsewhere: to `ready` in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.extraction import media_types
from retrieval.truth import documents
from retrieval.truth.documents import Work
from retrieval.truth.store import Store
from retrieval.truth.version_tables import Embedded, rows_of
from retrieval.types import Document, DocumentState, DocumentText, Metadata


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """What became of a file outside the shard.

    With `embedded` it becomes `ready`, with `error` it becomes `failed`, and with neither it is queued like
    one that was added by itself.
    """

    name: str
    """Its name."""
    data: bytes
    """Its bytes."""
    media_type: str = ""
    """MIME type as read; empty where it was not read."""
    document: DocumentText | None = None
    """Its text; None where it was not read."""
    embedded: Embedded | None = None
    """Its chunks, with the vectors of the version they were made for."""
    error: str | None = None
    """Why it cannot be made searchable."""

    @property
    def content_hash(self) -> str:
        """Return sha256 of the bytes, hex."""
        return hashlib.sha256(self.data).hexdigest()


def take_in(
    store: Store,
    read: Sequence[ReadDocument],
    version_id: str,
    *,
    library: str,
    tenant: str,
    metadata: Metadata | None,
) -> list[Document]:
    """Store documents in one transaction and return them; running it twice changes nothing.

    Bytes that answer already stay as they are. Where another index version than `version_id` is active by
    now, the documents are queued, to be cut and embedded as that one does.

    Raises:
        InvalidMetadata: A field cannot be stored.
        StorageFull: The disk has no room; nothing was stored.
    """
    version = store.version()
    fits = version.version_id == version_id
    rows = [rows_of(version.spec, one.embedded) if fits and one.embedded else None for one in read]
    taken: list[Document] = []
    with store.database.write() as db:
        for one, made in zip(read, rows, strict=True):
            media_type = media_types.sniff(one.name, one.data)
            added = documents.add(db, tenant, library, one.name, media_type, one.data, metadata)
            work = Work(added.document_id, added.content_hash, one.name, b"", tenant, library)
            if one.error is not None:
                documents.advance(db, work, DocumentState.FAILED, one.error)
            elif made is not None and one.document is not None:
                documents.finish(db, version, work, one.media_type, one.document, made)
            taken.append(documents.read(db, added.document_id, tenant))
    return taken
