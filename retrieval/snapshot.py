"""What a search reads from SQLite: the log position, new vectors, the lexical leg and the passages."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.types import Passage

HASH_PREFIX_DIGITS = 12
_PASSAGE_COLUMNS = (
    "c.row_id, c.document_id, d.name, c.library, c.text, c.start, c.stop, c.page, c.content_hash, c.ordinal"
)


@dataclass(frozen=True, slots=True)
class ChunkFilter:
    """Which chunks a query may see; the same value filters both legs."""

    tenant: str
    """Only this tenant's."""
    library: str | None = None
    """Only this library's; None for all."""
    document_ids: tuple[str, ...] = ()
    """Only these documents'; empty for all."""


@dataclass(frozen=True, slots=True)
class DocumentVectors:
    """The chunks of one document, as the vector index needs them."""

    document_id: str
    """The document."""
    tenant: str
    """Its tenant."""
    library: str
    """Its library."""
    row_ids: list[int]
    """Rows of `chunks`, ascending; never used again for another chunk."""
    chunk_ids: list[str]
    """Their public ids."""
    vectors_ND: np.ndarray
    """float32[len(row_ids), dim]."""


def chunk_id_of(document_id: str, content_hash: str, ordinal: int) -> str:
    """Return a chunk's public id."""
    return f"{document_id}:{content_hash[:HASH_PREFIX_DIGITS]}:{ordinal}"


class Snapshot:
    """Reads of one moment; valid while its transaction lasts."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def seq(self) -> int:
        """Return the position of the last change in the log."""
        return self._db.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()[0]

    def changed_documents(self, after_seq: int) -> list[str]:
        """Return the documents that changed after a log position."""
        rows = self._db.execute("SELECT DISTINCT document_id FROM ops WHERE seq>?", (after_seq,))
        return [row[0] for row in rows]

    def vectors(self, document_ids: Iterable[str]) -> list[DocumentVectors]:
        """Return the vectors of documents that have any."""
        found = []
        for document_id in document_ids:
            rows = self._db.execute(
                "SELECT row_id, tenant, library, content_hash, ordinal, vector FROM chunks"
                " WHERE document_id=? ORDER BY ordinal",
                (document_id,),
            ).fetchall()
            if rows:
                matrix_ND = np.frombuffer(b"".join(row["vector"] for row in rows), dtype="<f4")
                found.append(
                    DocumentVectors(
                        document_id=document_id,
                        tenant=rows[0]["tenant"],
                        library=rows[0]["library"],
                        row_ids=[row["row_id"] for row in rows],
                        chunk_ids=[
                            chunk_id_of(document_id, row["content_hash"], row["ordinal"]) for row in rows
                        ],
                        vectors_ND=matrix_ND.reshape(len(rows), -1),
                    )
                )
        return found

    def lexical(self, match: str, limit: int, chunks: ChunkFilter | None) -> dict[int, float]:
        """Return BM25 by row id of the best chunks; the filter acts before the limit.

        Args:
            match: An FTS5 expression from `lexical.match_expression`.
            limit: Most rows returned.
            chunks: Which chunks count; None for all.
        """
        if chunks is None:
            sql = (
                "SELECT rowid, -rank FROM chunks_fts WHERE chunks_fts MATCH :match ORDER BY rank LIMIT :limit"
            )
            return dict(self._db.execute(sql, {"match": match, "limit": limit}).fetchall())
        sql = (
            "SELECT f.rowid, -bm25(chunks_fts) AS score FROM chunks_fts AS f"
            " JOIN chunks AS c ON c.row_id=f.rowid WHERE chunks_fts MATCH :match AND c.tenant=:tenant"
        )
        if chunks.library is not None:
            sql += " AND c.library=:library"
        if chunks.document_ids:
            sql += " AND c.document_id IN (SELECT value FROM json_each(:document_ids))"
        rows = self._db.execute(
            f"{sql} ORDER BY score DESC, f.rowid LIMIT :limit",
            {
                "match": match,
                "limit": limit,
                "tenant": chunks.tenant,
                "library": chunks.library,
                "document_ids": json.dumps(chunks.document_ids),
            },
        )
        return dict(rows.fetchall())

    def passages_by_row(self, row_ids: Iterable[int]) -> dict[int, Passage]:
        """Return passages by row id."""
        rows = self._db.execute(
            f"SELECT {_PASSAGE_COLUMNS} FROM chunks AS c JOIN documents AS d USING (document_id)"
            " WHERE c.row_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(row_ids)),),
        )
        return {row["row_id"]: _passage(row) for row in rows}

    def passages_of(self, chunk_ids: Sequence[str], tenant: str) -> list[Passage | None]:
        """Return passages by public id, in order; None where there is none for this tenant."""
        keys = [[*chunk_id.split(":"), ""][:3] for chunk_id in chunk_ids]
        rows = self._db.execute(
            f"SELECT {_PASSAGE_COLUMNS} FROM json_each(:keys) AS k"
            " JOIN chunks AS c ON c.document_id=json_extract(k.value, '$[0]')"
            " AND c.ordinal=CAST(json_extract(k.value, '$[2]') AS INTEGER)"
            " JOIN documents AS d USING (document_id) WHERE c.tenant=:tenant",
            {"keys": json.dumps(keys), "tenant": tenant},
        )
        found = {passage.chunk_id: passage for passage in map(_passage, rows)}
        return [found.get(chunk_id) for chunk_id in chunk_ids]


def _passage(row: sqlite3.Row) -> Passage:
    return Passage(
        chunk_id=chunk_id_of(row["document_id"], row["content_hash"], row["ordinal"]),
        document_id=row["document_id"],
        document=row["name"],
        library=row["library"],
        text=row["text"],
        start=row["start"],
        end=row["stop"],
        page=row["page"],
    )
