"""What an index reads from SQLite at one moment: changes, rows for building, terms, and passages.

A snapshot has a connection of its own; it neither waits for writers nor makes them wait. Every call names the
index version by its number, whose tables it reads.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from retrieval.lexical import terms_of
from retrieval.truth import registry
from retrieval.truth.metadata import parsed
from retrieval.truth.stored import (
    Changes,
    DeltaStats,
    DocumentInfo,
    DocumentRows,
    RowBlock,
    TextRow,
    chunk_id_of,
)
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import MetadataValue, Passage
from retrieval.vectors import codecs

__all__ = ["Changes", "DeltaStats", "DocumentInfo", "DocumentRows", "RowBlock", "Snapshot", "chunk_id_of"]

_ROW_COLUMNS = "c.row_id, c.document_id, c.content_hash, c.ordinal, c.page, c.num_terms, c.vector"
_INFO_COLUMNS = "d.tenant, d.library, d.name, d.media_type, d.metadata, d.created_s, d.updated_s"
_PASSAGE_COLUMNS = (
    "c.document_id, d.name, d.library, c.text, c.start, c.stop, c.page, c.content_hash, c.ordinal"
)


class Snapshot:
    """Reads of one moment; valid while its transaction lasts, for one thread at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def seq(self) -> int:
        """Return the position of the last change in the log."""
        return self._db.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()[0]

    def versions(self) -> list[StoredVersion]:
        """Return the index versions, oldest first."""
        return registry.all_versions(self._db)

    def version(self, name: str | None = None) -> StoredVersion:
        """Return a version by id or alias, the active one for None; raises UnknownVersion."""
        return registry.find(self._db, name)

    def aliases(self) -> dict[str, str]:
        """Return the version id of each alias."""
        return dict(map(tuple, self._db.execute("SELECT name, version_id FROM aliases").fetchall()))

    def fields(self) -> dict[str, str]:
        """Return the type of each metadata field: text, number, boolean or texts."""
        return dict(map(tuple, self._db.execute("SELECT name, type FROM fields").fetchall()))

    def num_rows(self, version_number: int) -> int:
        """Return the chunks a version holds."""
        self._version(version_number)
        return self._db.execute(f"SELECT count(*) FROM chunks_{version_number}").fetchone()[0]

    def changes(self, version_number: int, after_seq: int) -> Changes:
        """Return what a version's index must take up to go from a log position to this moment.

        Of each changed document only the latest state comes. Its rows replace all it had, which may be the
        very same `row_ids`: then only its metadata changed. New rows have higher ids than any before.
        """
        seq = self.seq()
        if seq == after_seq:
            return Changes(seq, [], [])
        version = self._version(version_number)
        columns = f"SELECT {_ROW_COLUMNS}, {_INFO_COLUMNS}"
        joined = "JOIN documents AS d ON d.document_id=c.document_id ORDER BY c.row_id"
        if not after_seq:
            # Everything there is: the log, which only grows, is not looked at.
            rows = self._db.execute(f"{columns} FROM chunks_{version_number} AS c {joined}").fetchall()
            return Changes(seq, [], self._documents(version, rows))
        changed = [
            row[0]
            for row in self._db.execute(
                "SELECT DISTINCT document_id FROM ops WHERE seq>? AND version IN (?, 0)",
                (after_seq, version_number),
            )
        ]
        rows = self._db.execute(
            f"{columns} FROM json_each(?) JOIN chunks_{version_number} AS c ON c.document_id=value {joined}",
            (json.dumps(changed),),
        ).fetchall()
        documents = self._documents(version, rows)
        left = {document.document_id for document in documents}
        return Changes(seq, [one for one in changed if one not in left], documents)

    def blocks(
        self, version_number: int, block_rows: int = 4096, with_terms: bool = False
    ) -> Iterator[RowBlock]:
        """Yield every row of a version by ascending row id, for building a base segment.

        Args:
            version_number: The version.
            block_rows: Most rows of a block.
            with_terms: Whether blocks carry the rows' stemmed terms, made anew from their texts.
        """
        version = self._version(version_number)
        text = ", c.text" if with_terms else ""
        cursor = self._db.execute(
            f"SELECT {_ROW_COLUMNS}, {_INFO_COLUMNS}{text} FROM chunks_{version_number} AS c"
            " JOIN documents AS d ON d.document_id=c.document_id ORDER BY c.row_id"
        )
        while rows := cursor.fetchmany(block_rows):
            documents: dict[str, int] = {}
            infos: list[DocumentInfo] = []
            for row in rows:
                if row["document_id"] not in documents:
                    documents[row["document_id"]] = len(infos)
                    infos.append(_info(row))
            yield RowBlock(
                row_ids=_ints(rows, "row_id", np.int64),
                documents=infos,
                document_of=np.array([documents[row["document_id"]] for row in rows], dtype=np.int32),
                ordinals=_ints(rows, "ordinal", np.int32),
                pages=_pages(rows),
                num_terms=_ints(rows, "num_terms", np.int32),
                vectors_ND=self._vectors(version, rows),
                terms=[terms_of(row["text"]) for row in rows] if with_terms else None,
            )

    def mark(self, seq: int) -> str:
        """Return a digest of the op at a log position: tells this log from another's; empty for none."""
        row = self._db.execute("SELECT * FROM ops WHERE seq=?", (seq,)).fetchone()
        return "" if row is None else hashlib.sha256(repr(tuple(row)).encode()).hexdigest()[:16]

    def terms(self, version_number: int, after_row_id: int = 0) -> Iterator[tuple[int, list[str]]]:
        """Yield row id and stemmed terms of rows after a row id, ascending; made anew where pruned."""
        self._version(version_number)
        cursor = self._db.execute(
            "SELECT c.row_id, t.terms, CASE WHEN t.terms IS NULL THEN c.text END AS text"
            f" FROM chunks_{version_number} AS c LEFT JOIN terms_{version_number} AS t USING (row_id)"
            " WHERE c.row_id>? ORDER BY c.row_id",
            (after_row_id,),
        )
        for row in cursor:
            yield row["row_id"], terms_of(row["text"]) if row["terms"] is None else row["terms"].split()

    def has_terms(self, version_number: int, row_id: int) -> bool:
        """Return whether the terms of a row are here; pruning takes the lowest rows first."""
        self._version(version_number)
        found = self._db.execute(f"SELECT 1 FROM terms_{version_number} WHERE row_id=?", (row_id,)).fetchone()
        return found is not None

    def delta_terms(self, version_number: int, after_row_id: int) -> list[tuple[int, str]]:
        """Return row id and stemmed terms, parted by spaces, of live rows after a row id, ascending.

        Rows whose terms were pruned are left out.
        """
        self._version(version_number)
        cursor = self._db.cursor()
        cursor.row_factory = None  # Plain tuples: there may be many.
        return cursor.execute(
            f"SELECT row_id, terms FROM terms_{version_number} WHERE row_id>? ORDER BY row_id",
            (after_row_id,),
        ).fetchall()

    def delta_stats(self, version_number: int, after_row_id: int) -> DeltaStats:
        """Return the number and the length of live rows after a row id."""
        self._version(version_number)
        row = self._db.execute(
            f"SELECT count(*), coalesce(sum(num_terms), 0) FROM chunks_{version_number} WHERE row_id>?",
            (after_row_id,),
        ).fetchone()
        return DeltaStats(*row)

    def passages(
        self, version_number: int, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        """Return passages by chunk id; those that are gone or another tenant's are left out.

        Args:
            version_number: The version.
            chunk_ids: The chunks.
            tenant: Whose they must be.
            before: Chunks before each that its passage grows by, as far as its document goes.
            after: Chunks after each that its passage grows by.
        """
        rows = self._by_chunk_id(version_number, chunk_ids, _PASSAGE_COLUMNS, "AND d.tenant=:tenant", tenant)
        found = {passage.chunk_id: passage for passage in map(_passage, rows)}
        if before or after:
            for row in rows:
                grown = self._grown(version_number, row, before, after)
                found[_chunk_id(row)] = replace(found[_chunk_id(row)], **grown)
        return found

    def _grown(
        self, version_number: int, row: sqlite3.Row, before: int, after: int
    ) -> dict[str, str | int | None]:
        """Return text, start, end and page of the stretch of a document around one of its chunks."""
        around = self._db.execute(
            f"SELECT start, stop, page, text FROM chunks_{version_number}"
            " WHERE document_id=? AND ordinal BETWEEN ? AND ? ORDER BY ordinal",
            (row["document_id"], row["ordinal"] - before, row["ordinal"] + after),
        ).fetchall()
        start, stop = around[0]["start"], max(one["stop"] for one in around)
        whole = self._db.execute(
            "SELECT substr(text, ?, ?) FROM texts JOIN documents AS d USING (document_id)"
            " WHERE document_id=? AND d.active_hash=?",
            (start + 1, stop - start, row["document_id"], row["content_hash"]),
        ).fetchone()
        if whole is None:
            # The version still holds bytes whose text was replaced: what its chunks cover, and no more.
            return {"text": row["text"], "start": row["start"], "end": row["stop"], "page": row["page"]}
        return {"text": whole[0], "start": start, "end": stop, "page": around[0]["page"]}

    def neighbours(
        self, version_number: int, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        """Return the passages around a chunk in its document, itself included, in order.

        Empty when the chunk is gone or another tenant's.
        """
        self._version(version_number)
        document_id, prefix, ordinal = _parts(chunk_id)
        rows = self._db.execute(
            f"SELECT {_PASSAGE_COLUMNS} FROM chunks_{version_number} AS c"
            " JOIN documents AS d ON d.document_id=c.document_id"
            " WHERE c.document_id=? AND c.ordinal BETWEEN ? AND ? AND d.tenant=? ORDER BY c.ordinal",
            (document_id, ordinal - before, ordinal + after, tenant),
        )
        found = [_passage(row) for row in rows if row["content_hash"].startswith(prefix)]
        return found if any(passage.chunk_id == chunk_id for passage in found) else []

    def rows_with_text(
        self, version_number: int, after_row_id: int, library: str | None, tenant: str, limit: int
    ) -> list[TextRow]:
        """Return a tenant's next rows after a row id, with texts and vectors."""
        version = self._version(version_number)
        only = "" if library is None else " AND d.library=:library"
        rows = self._db.execute(
            "SELECT c.row_id, d.name, d.metadata, c.ordinal, h.num_chunks, c.text, c.vector"
            f" FROM chunks_{version_number} AS c JOIN documents AS d ON d.document_id=c.document_id"
            f" JOIN held_{version_number} AS h ON h.document_id=c.document_id"
            f" WHERE c.row_id>:after AND d.tenant=:tenant{only} ORDER BY c.row_id LIMIT :limit",
            {"after": after_row_id, "tenant": tenant, "library": library, "limit": limit},
        ).fetchall()
        return [
            TextRow(row["row_id"], row["name"], parsed(row["metadata"]), row["ordinal"], row["num_chunks"],
                    row["text"], vector_D)
            for row, vector_D in zip(rows, self._vectors(version, rows), strict=True)
        ]  # fmt: skip

    def vectors(self, version_number: int, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[dim] by chunk id, of those that are there."""
        version = self._version(version_number)
        rows = self._by_chunk_id(
            version_number, chunk_ids, "c.document_id, c.content_hash, c.ordinal, c.vector"
        )
        return dict(zip(map(_chunk_id, rows), self._vectors(version, rows), strict=True))

    def token_codes(self, version_number: int, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        """Return compressed token vectors by chunk id, of those that are there and have them."""
        self._version(version_number)
        rows = self._by_chunk_id(
            version_number,
            chunk_ids,
            f"c.document_id, c.content_hash, c.ordinal,"
            f" (SELECT codes FROM tokens_{version_number} AS t WHERE t.row_id=c.row_id) AS codes",
        )
        return {_chunk_id(row): row["codes"] for row in rows if row["codes"] is not None}

    def _by_chunk_id(
        self, number: int, chunk_ids: Sequence[str], columns: str, condition: str = "", tenant: str = ""
    ) -> list[sqlite3.Row]:
        """Return the rows at these chunks' places; their content hash may be another by now."""
        self._version(number)
        # CROSS JOIN keeps this order: the planner would rather walk all documents of a tenant.
        return self._db.execute(
            f"SELECT {columns} FROM json_each(:keys) AS k"
            f" CROSS JOIN chunks_{number} AS c ON c.document_id=json_extract(k.value, '$[0]')"
            " AND c.ordinal=json_extract(k.value, '$[2]')"
            " AND substr(c.content_hash, 1, 12)=json_extract(k.value, '$[1]')"
            f" CROSS JOIN documents AS d ON d.document_id=c.document_id {condition}",
            {"keys": json.dumps([_parts(chunk_id) for chunk_id in chunk_ids]), "tenant": tenant},
        ).fetchall()

    def _version(self, number: int) -> StoredVersion:
        return registry.numbered(self._db, number)

    def _documents(self, version: StoredVersion, rows: Sequence[sqlite3.Row]) -> list[DocumentRows]:
        """Return rows, which ascend in row id, by document."""
        if not rows:
            return []
        vectors_ND = self._vectors(version, rows)
        columns = (
            _ints(rows, "row_id", np.int64),
            _ints(rows, "ordinal", np.int32),
            _pages(rows),
            _ints(rows, "num_terms", np.int32),
            vectors_ND,
        )
        # The rows of a document are written together, so they are neighbours.
        starts = [
            0,
            *(i for i in range(1, len(rows)) if rows[i]["document_id"] != rows[i - 1]["document_id"]),
        ]
        return [
            DocumentRows(
                rows[start]["document_id"],
                *_info_values(rows[start]),
                *(column[start:stop] for column in columns),
            )
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]

    @staticmethod
    def _vectors(version: StoredVersion, rows: Sequence[sqlite3.Row]) -> np.ndarray:
        codes = b"".join([row["vector"] for row in rows])
        return codecs.decode(codes, version.spec.vectors, version.dim)


def _info_values(
    row: sqlite3.Row,
) -> tuple[str, str, str, str, dict[str, MetadataValue], float, float, str]:
    return (row["tenant"], row["library"], row["name"], row["media_type"], parsed(row["metadata"]),
            row["created_s"], row["updated_s"], row["content_hash"])  # fmt: skip


def _info(row: sqlite3.Row) -> DocumentInfo:
    return DocumentInfo(row["document_id"], *_info_values(row))


def _ints(rows: Sequence[sqlite3.Row], name: str, kind: type) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=kind)


def _pages(rows: Sequence[sqlite3.Row]) -> np.ndarray:
    return np.array([row["page"] or 0 for row in rows], dtype=np.int32)


def _parts(chunk_id: str) -> tuple[str, str, int]:
    """Return document id, hash prefix and ordinal; an ordinal of -1 for what is no chunk id."""
    document_id, _, rest = chunk_id.partition(":")
    prefix, _, ordinal = rest.partition(":")
    return document_id, prefix, int(ordinal) if ordinal.isascii() and ordinal.isdigit() else -1


def _chunk_id(row: sqlite3.Row) -> str:
    return chunk_id_of(row["document_id"], row["content_hash"], row["ordinal"])


def _passage(row: sqlite3.Row) -> Passage:
    return Passage(
        chunk_id=_chunk_id(row),
        document_id=row["document_id"],
        document=row["name"],
        library=row["library"],
        text=row["text"],
        start=row["start"],
        end=row["stop"],
        page=row["page"],
    )
