"""The vector index of a shard: exact inner product over FAISS, rebuilt from SQLite whenever it is not there.

FAISS holds vectors by position only; which chunk a position is, and whether it still lives, is kept here,
because ids inside FAISS make deletes cost 37 ms and drift. Filters act inside: a filtered search considers
exactly the chunks the filter keeps, so it never returns fewer than exist and never another tenant's.

Legend: N chunks, Q queries, K hits, D dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from retrieval.snapshot import ChunkFilter, DocumentVectors

BLAS_THRESHOLD = 2000
"""Queries x dimensions from which FAISS uses BLAS. Its default since 1.15, 128000, makes exact search at
batch 32 ten times slower."""

_MAX_CACHED_SELECTIONS = 4
_MAX_DEAD_SHARE = 0.2
_MIN_DEAD_ROWS = 1000


def _only(bits: np.ndarray) -> faiss.SearchParameters:
    # The Python layer of FAISS takes an array and keyword arguments; its type stubs describe the C++ one.
    return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A document's place in the index."""

    code: int
    tenant: str
    library: str
    positions_N: np.ndarray


@dataclass(frozen=True, slots=True)
class _Selection:
    """The chunks a filter keeps, in the form that is fastest to search."""

    count: int
    positions_N: np.ndarray | None = None
    """Set with `block`: the position of each row of the copied block."""
    block: faiss.IndexFlatIP | None = None
    bits: np.ndarray | None = None
    """uint8, one bit a position; set when the filter keeps too many to copy."""


class VectorIndex:
    """Exact search over the chunks of one shard. Not thread-safe: the store's snapshot guards it."""

    def __init__(self, gather_max_rows: int) -> None:
        """Start empty; `gather_max_rows` is the largest filter answered from a copied block."""
        faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
        self.seq = 0
        self._gather_max_rows = gather_max_rows
        self._flat = faiss.IndexFlatIP(1)
        self._row_ids_N = np.empty(0, dtype=np.int64)
        self._codes_N = np.empty(0, dtype=np.int64)
        self._alive_N = np.empty(0, dtype=bool)
        self._chunk_ids: dict[int, str] = {}
        self._entries: dict[str, _Entry] = {}
        self._next_code = 0
        self._selections: OrderedDict[ChunkFilter, _Selection] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chunk_ids)

    def chunk_id(self, row_id: int) -> str:
        """Return the public id of a live chunk."""
        return self._chunk_ids[row_id]

    def put(self, documents: Sequence[DocumentVectors]) -> None:
        """Add documents' chunks in place of those they had.

        Raises:
            ValueError: The vectors have another dimension than those already here.
        """
        for document in documents:
            self.remove(document.document_id)
        if not documents:
            return
        if not self._chunk_ids:
            self._clear(documents[0].vectors_ND.shape[1])
        for document in documents:
            dim = document.vectors_ND.shape[1]
            if dim != self._flat.d:
                raise ValueError(
                    f"document '{document.document_id}' has vectors of {dim} dimensions, the index has "
                    f"{self._flat.d}; one index holds one embedder's vectors"
                )
        row_ids, codes = [self._row_ids_N], [self._codes_N]
        for document in documents:
            first, count = self._flat.ntotal, len(document.row_ids)
            self._flat.add(np.ascontiguousarray(document.vectors_ND, dtype=np.float32))
            row_ids.append(np.asarray(document.row_ids, dtype=np.int64))
            codes.append(np.full(count, self._next_code, dtype=np.int64))
            self._chunk_ids.update(zip(document.row_ids, document.chunk_ids, strict=True))
            self._entries[document.document_id] = _Entry(
                self._next_code, document.tenant, document.library, np.arange(first, first + count)
            )
            self._next_code += 1
        self._row_ids_N, self._codes_N = np.concatenate(row_ids), np.concatenate(codes)
        num_new = len(self._row_ids_N) - len(self._alive_N)
        self._alive_N = np.concatenate([self._alive_N, np.ones(num_new, dtype=bool)])
        self._selections.clear()

    def remove(self, document_id: str) -> None:
        """Remove a document's chunks, if it has any."""
        entry = self._entries.pop(document_id, None)
        if entry is None:
            return
        self._alive_N[entry.positions_N] = False
        for row_id in self._row_ids_N[entry.positions_N].tolist():
            del self._chunk_ids[row_id]
        self._selections.clear()
        dead = len(self._alive_N) - len(self._chunk_ids)
        if dead > max(_MIN_DEAD_ROWS, _MAX_DEAD_SHARE * len(self._alive_N)):
            self._compact()

    def keeps_all(self, chunks: ChunkFilter) -> bool:
        """Return whether a filter keeps every chunk."""
        return self._select(chunks).count == len(self._chunk_ids)

    def search(self, queries_QD: np.ndarray, k: int, chunks: ChunkFilter) -> list[dict[int, float]]:
        """Return the cosine by row id of each query's `k` nearest chunks among those the filter keeps.

        Args:
            queries_QD: float32[Q, D], L2-normalised.
            k: Hits a query; fewer come back only when the filter keeps fewer chunks.
            chunks: The filter.

        Raises:
            ValueError: The queries have another dimension than the index.
        """
        selection = self._select(chunks)
        if selection.count == 0:
            return [{} for _ in queries_QD]
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self._flat.d:
            raise ValueError(
                f"queries have shape {queries_QD.shape}, the index has {self._flat.d} dimensions"
            )
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        k = min(k, selection.count)
        if selection.block is not None and selection.positions_N is not None:
            scores_QK, found_QK = selection.block.search(queries_QD, k)
            positions_QK = selection.positions_N[found_QK]
        elif selection.bits is not None:
            only = _only(selection.bits)
            scores_QK, positions_QK = self._flat.search(queries_QD, k, params=only)
        else:
            scores_QK, positions_QK = self._flat.search(queries_QD, k)
        row_ids_QK = self._row_ids_N[positions_QK]
        return [
            dict(zip(row_ids_K, scores_K, strict=True))
            for row_ids_K, scores_K in zip(row_ids_QK.tolist(), scores_QK.tolist(), strict=True)
        ]

    def _select(self, chunks: ChunkFilter) -> _Selection:
        selection = self._selections.get(chunks)
        if selection is None:
            selection = self._selections[chunks] = self._make_selection(chunks)
            while len(self._selections) > _MAX_CACHED_SELECTIONS:
                self._selections.popitem(last=False)
        self._selections.move_to_end(chunks)
        return selection

    def _make_selection(self, chunks: ChunkFilter) -> _Selection:
        wanted = set(chunks.document_ids)
        allowed = np.zeros(self._next_code, dtype=bool)
        for document_id, entry in self._entries.items():
            allowed[entry.code] = (
                entry.tenant == chunks.tenant
                and (chunks.library is None or entry.library == chunks.library)
                and (not wanted or document_id in wanted)
            )
        mask_N = allowed[self._codes_N] & self._alive_N
        count = int(mask_N.sum())
        if count == len(mask_N):
            return _Selection(count)
        if 0 < count <= self._gather_max_rows:
            positions_N = np.flatnonzero(mask_N)
            return _Selection(count, positions_N, self._copy_of(positions_N))
        return _Selection(count, bits=np.packbits(mask_N, bitorder="little"))

    def _copy_of(self, positions_N: np.ndarray) -> faiss.IndexFlatIP:
        flat = faiss.IndexFlatIP(self._flat.d)
        vectors_ND = faiss.rev_swig_ptr(self._flat.get_xb(), self._flat.ntotal * self._flat.d)
        flat.add(vectors_ND.reshape(self._flat.ntotal, self._flat.d)[positions_N])
        return flat

    def _clear(self, dim: int) -> None:
        self._flat = faiss.IndexFlatIP(dim)
        self._row_ids_N, self._codes_N = self._row_ids_N[:0], self._codes_N[:0]
        self._alive_N = self._alive_N[:0]
        self._entries.clear()
        self._next_code = 0

    def _compact(self) -> None:
        """Drop dead rows and renumber, so that removed vectors also leave memory."""
        live_N = np.flatnonzero(self._alive_N)
        self._flat = self._copy_of(live_N)
        codes_N = self._codes_N[live_N]
        self._row_ids_N, self._alive_N = self._row_ids_N[live_N], self._alive_N[live_N]
        entries = {}
        for code, (document_id, entry) in enumerate(self._entries.items()):
            positions_N = np.flatnonzero(codes_N == entry.code)
            entries[document_id] = _Entry(code, entry.tenant, entry.library, positions_N)
        self._codes_N = np.empty(len(live_N), dtype=np.int64)
        for entry in entries.values():
            self._codes_N[entry.positions_N] = entry.code
        self._entries, self._next_code = entries, len(entries)
