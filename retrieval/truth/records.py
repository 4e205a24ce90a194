"""Records: texts stored as they are, one chunk each, searchable when the transaction ends."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.errors import InvalidDocument, InvalidVector, InvalidVersion
from retrieval.extraction.files import check_path_name
from retrieval.lexical import terms_of
from retrieval.truth import oplog
from retrieval.truth.documents import document_id_of, learn_fields
from retrieval.truth.metadata import canonical
from retrieval.truth.version_tables import Rows, StoredVersion, insert_rows, remove_chunks
from retrieval.types import Chunk, DocumentState, Metadata, Record
from retrieval.vectors import codecs
from retrieval.versions import VersionState

RECORD_MEDIA_TYPE = "text/plain"


@dataclass(frozen=True, slots=True)
class Vectors:
    """What one version's embedder made of records."""

    vectors_NM: np.ndarray
    """float32[num_records, model_dim]."""
    token_codes: Sequence[bytes] = ()
    """One a record where the version keeps token vectors, no bytes for a record that has none; else empty."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Records in the form the tables keep; made before the write lock is taken."""

    documents: list[tuple[str, str, str, str, str, str, int, float]]
    """document id, tenant, library, name, metadata, content hash, bytes, Unix time."""
    metadatas: list[Metadata]
    """Their metadata."""
    rows: dict[int, list[Rows]]
    """By version number, the one chunk of each."""


def check(records: Sequence[Record]) -> list[bytes]:
    """Check what can be told without the index, and return the records' texts as UTF-8.

    Raises:
        InvalidDocument: A record's name is no plain name, its text is empty, or two have one name.
    """
    names: set[str] = set()
    texts: list[bytes] = []
    for record in records:
        check_path_name(record.name, what="record name")
        if record.name in names:
            raise InvalidDocument(f"two records are named {record.name!r}; give each its own name")
        names.add(record.name)
        if not record.text.strip():
            raise InvalidDocument(f"record {record.name!r} has no text; give at least one word")
        try:
            texts.append(record.text.encode())
        except UnicodeEncodeError as error:
            raise InvalidDocument(
                f"record {record.name!r} holds half a character (a lone surrogate); send valid Unicode"
            ) from error
    return texts


def prepare(
    tenant: str,
    library: str,
    records: Sequence[Record],
    embedded: Mapping[int, Vectors],
    versions: Sequence[StoredVersion],
) -> Prepared:
    """Check records and bring them into the form the tables keep.

    Args:
        tenant: Their tenant.
        library: Their library.
        records: The records, no two of one name.
        embedded: Vectors by version number; the active version's must be there.
        versions: The shard's versions.

    Raises:
        InvalidDocument: A record's name is no plain name, its text is empty, or two have one name.
        InvalidMetadata: A field's name or value cannot be stored.
        InvalidVector: A vector has another dimension than its version, is not finite, or zero.
    """
    now = time.time()
    documents, chunks, terms = [], [], []
    for record, data in zip(records, check(records), strict=True):
        documents.append(
            (document_id_of(tenant, library, record.name), tenant, library, record.name,
             canonical(record.metadata), hashlib.sha256(data).hexdigest(), len(data), now)
        )  # fmt: skip
        chunks.append(Chunk(0, record.text, 0, len(record.text)))
        terms.append(terms_of(record.text))
    rows = {
        version.number: _rows(version, embedded[version.number], records, chunks, terms)
        for version in versions
        if version.number in embedded
    }
    return Prepared(documents, [record.metadata for record in records], rows)


def _rows(
    version: StoredVersion,
    embedded: Vectors,
    records: Sequence[Record],
    chunks: Sequence[Chunk],
    terms: list[list[str]],
) -> list[Rows]:
    spec = version.spec
    try:
        vectors_ND = codecs.unit(embedded.vectors_NM, spec.model_dim, spec.dim)
    except ValueError as error:
        raise InvalidVector(f"records of index version {version.version_id!r}: {error}") from error
    codes_NB = codecs.encode(vectors_ND, spec.vectors)
    tokens = embedded.token_codes if spec.tokens != "none" else ()
    return [
        Rows((chunks[i],), codes_NB[i : i + 1], [terms[i]], [code for code in tokens[i : i + 1] if code])
        for i in range(len(records))
    ]


def upsert(db: sqlite3.Connection, prepared: Prepared) -> int:
    """Store records in place of documents of their names and return the log's last position.

    Raises:
        InvalidVersion: The active version is not among those the records were embedded for.
    """
    active = db.execute("SELECT number FROM versions WHERE state=?", (VersionState.ACTIVE,)).fetchone()
    if active is None or active[0] not in prepared.rows:
        raise InvalidVersion("another index version answers than the records were embedded for; try again")
    learn_fields(db, prepared.metadatas)
    wanted = json.dumps([row[0] for row in prepared.documents])
    known = db.execute(
        "SELECT document_id, kind FROM json_each(?) JOIN documents ON document_id=value", (wanted,)
    ).fetchall()
    if known:
        document_ids = [row[0] for row in known]
        for number in prepared.rows:
            remove_chunks(db, number, document_ids)
    if files := [row[0] for row in known if row[1] == "file"]:
        for table in ("texts", "contents"):
            db.execute(
                f"DELETE FROM {table} WHERE document_id IN (SELECT value FROM json_each(?))",
                (json.dumps(files),),
            )
    db.executemany(
        "INSERT INTO documents(document_id, tenant, library, name, kind, media_type, metadata, content_hash,"
        " active_hash, num_bytes, state, created_s, updated_s)"
        f" VALUES (?1,?2,?3,?4,'record','{RECORD_MEDIA_TYPE}',?5,?6,?6,?7,'{DocumentState.READY}',?8,?8)"
        " ON CONFLICT(document_id) DO UPDATE SET kind='record', media_type=excluded.media_type,"
        " metadata=excluded.metadata, content_hash=excluded.content_hash, active_hash=excluded.active_hash,"
        " num_bytes=excluded.num_bytes, state=excluded.state, error=NULL, num_pages=NULL,"
        " updated_s=excluded.updated_s",
        prepared.documents,
    )
    owners = [(row[0], row[5]) for row in prepared.documents]
    seq = 0
    for number, rows in prepared.rows.items():
        insert_rows(db, number, owners, rows)
        seq = oplog.log(db, "put", owners, number)
    return seq
