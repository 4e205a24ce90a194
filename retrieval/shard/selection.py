"""Which chunks a query may see, as a bitmap over positions; made once per filter and kept up to date.

The tenant is part of every selection, added here from the request's own tenant: no caller can leave it out.

Legend: N positions, G documents ever seen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from retrieval.filters import Compare, Exists, Filter, In, check_shape, check_types, fields_of
from retrieval.shard.columns import Column, Columns, evaluate
from retrieval.shard.rows import RowTable
from retrieval.types import SearchRequest

_MAX_KEPT = 64
"""Most selections kept; each takes a byte a chunk."""
_PAGE = "page"


@dataclass(frozen=True, slots=True)
class ChunkFilter:
    """Which chunks a query may see; the same value filters both legs."""

    tenant: str
    """Only this tenant's."""
    library: str | None = None
    """Only this library's; None for all."""
    document_ids: tuple[str, ...] = ()
    """Only these documents'; empty for all."""
    predicate: Filter | None = None
    """Only chunks that satisfy it."""

    @classmethod
    def of(cls, request: SearchRequest) -> ChunkFilter:
        """Return the filter of a request."""
        document_ids = tuple(sorted(set(request.document_ids)))
        return cls(request.tenant, request.library, document_ids, request.filter)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The live chunks a filter keeps."""

    keep: np.ndarray | None
    """bool[N], false for dead chunks; None when every live chunk is kept. Not to be written to."""
    count: int
    """Chunks kept."""
    name: ChunkFilter
    """The filter."""


class _Kept:
    """One filter's bitmap, and how far it has followed the table."""

    def __init__(self, chunks: ChunkFilter) -> None:
        self.chunks = chunks
        self.documents_G = np.empty(0, dtype=bool)
        self.keep_N = np.empty(0, dtype=bool)
        self.num_touched = 0
        self.selection: Selection | None = None


class Selections:
    """The selections of one version, most recently used last. Not thread-safe."""

    def __init__(self, rows: RowTable, columns: Columns) -> None:
        self._rows = rows
        self._columns = columns
        self._kept: OrderedDict[ChunkFilter, _Kept] = OrderedDict()

    def unknown_fields(self, chunks: ChunkFilter) -> frozenset[str]:
        """Return the fields a filter names that no document of this version has."""
        if chunks.predicate is None:
            return frozenset()
        return fields_of(chunks.predicate) - self._columns.fields.keys()

    def get(self, chunks: ChunkFilter) -> Selection:
        """Return what a filter keeps now; the very same object until a chunk comes, goes or changes.

        A field that no document has is absent from all of them; see `unknown_fields`.

        Raises:
            InvalidFilter: The predicate is malformed, or compares a field with a value of another type.
        """
        if chunks.predicate is not None:
            # Before looking it up: 1 and True are equal keys, but not equally valid.
            check_shape(chunks.predicate)
            check_types(chunks.predicate, self._columns.fields)
        kept = self._kept.get(chunks)
        if kept is None:
            kept = self._kept[chunks] = _Kept(chunks)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(chunks)
        if kept.selection is None or self._is_behind(kept):
            kept.selection = self._brought_up(kept)
        return kept.selection

    def _is_behind(self, kept: _Kept) -> bool:
        return len(kept.keep_N) != len(self._rows) or kept.num_touched != len(self._rows.touched)

    def _brought_up(self, kept: _Kept) -> Selection:
        """Return the selection after evaluating only what came or changed since the last time."""
        rows, chunks, seen = self._rows, kept.chunks, len(kept.keep_N)
        if chunks.predicate is not None and _PAGE in fields_of(chunks.predicate):
            keep_N = self._by_chunk(chunks)
        else:
            documents_G = self._columns.keeps(
                chunks.tenant, chunks.library, chunks.document_ids, chunks.predicate, len(kept.documents_G)
            )
            kept.documents_G = np.concatenate([kept.documents_G, documents_G])
            new_N = kept.documents_G[rows.codes_N[seen:]] & rows.alive_N[seen:]
            keep_N = np.concatenate([kept.keep_N, new_N])
            for positions in rows.touched[kept.num_touched :]:
                keep_N[positions] = kept.documents_G[rows.codes_N[positions]] & rows.alive_N[positions]
        # A new array each time: an earlier selection may still be in use as a cache key elsewhere.
        kept.keep_N, kept.num_touched = keep_N, len(rows.touched)
        count = int(np.count_nonzero(keep_N))
        return Selection(None if count == rows.num_live else keep_N, count, chunks)

    def _by_chunk(self, chunks: ChunkFilter) -> np.ndarray:
        """Return the bitmap of a predicate that also names a chunk's own field."""
        rows, predicate = self._rows, chunks.predicate
        codes_N = rows.codes_N
        documents_G = self._columns.keeps(chunks.tenant, chunks.library, chunks.document_ids, None)
        keep_N = documents_G[codes_N] & rows.alive_N
        if predicate is None:
            return keep_N

        def leaf(comparison: Compare | In | Exists) -> np.ndarray:
            if comparison.field == _PAGE:
                return _holds_of_page(comparison, rows.pages_N)
            return self._columns.leaf(comparison)[codes_N]

        return keep_N & evaluate(predicate, leaf)


def _holds_of_page(comparison: Compare | In | Exists, pages_N: np.ndarray) -> np.ndarray:
    paged = np.flatnonzero(pages_N)
    column = Column("number", paged, pages_N[paged])
    return column.keeps(comparison, 0, len(pages_N))
