"""The chunks of one index version by position: where each came from and whether it still lives.

A position is a chunk's place in the vector and lexical segments: 0 to N-1, in the order chunks came. It never
moves until compaction makes a new table. Which document a chunk belongs to is a code into `Columns`; a
document that changes gets a new code, so that what was computed of a code stays true.

Legend: N positions, G documents ever seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retrieval.shard.growing import GrowingArray
from retrieval.truth.stored import DocumentRows

_ARRAYS: dict[str, str] = {
    "row_ids": "int64",
    "codes": "int32",
    "ordinals": "int32",
    "pages": "int32",
    "num_terms": "int32",
}


class RowTable:
    """Chunks by position. Not thread-safe: the shard's search lock guards it."""

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Start empty, or with chunks as `live_arrays` returned them: all of them live."""
        arrays = arrays or {name: np.empty(0, dtype) for name, dtype in _ARRAYS.items()}
        self._row_ids, self._codes, self._ordinals, self._pages, self._num_terms = (
            GrowingArray(np.asarray(arrays[name], dtype=dtype)) for name, dtype in _ARRAYS.items()
        )
        num_rows = len(self._row_ids)
        self._alive = GrowingArray(np.ones(num_rows, dtype=bool))
        self.num_live = num_rows
        self.num_live_terms = int(self.num_terms_N.sum(dtype=np.int64))
        self.touched: list[np.ndarray] = []
        """Positions whose document or life changed after they came, in the order it happened."""
        starts = np.flatnonzero(np.diff(self.codes_N, prepend=-1)) if num_rows else np.empty(0, np.int64)
        num_documents = int(self.codes_N.max()) + 1 if num_rows else 0
        first_G, counts_G = np.zeros(num_documents, dtype=np.int64), np.zeros(num_documents, dtype=np.int64)
        first_G[self.codes_N[starts]] = starts
        counts_G[self.codes_N[starts]] = np.diff(starts, append=num_rows)
        self._first = GrowingArray(first_G)
        self._counts = GrowingArray(counts_G)

    def __len__(self) -> int:
        return len(self._row_ids)

    @property
    def row_ids_N(self) -> np.ndarray:
        """Return int64[N]: rows of the store's chunk table."""
        return self._row_ids.values

    @property
    def codes_N(self) -> np.ndarray:
        """Return int32[N]: the document of each chunk."""
        return self._codes.values

    @property
    def ordinals_N(self) -> np.ndarray:
        """Return int32[N]: the chunk's place within its document."""
        return self._ordinals.values

    @property
    def pages_N(self) -> np.ndarray:
        """Return int32[N]: the page of its first character, from 1; 0 where there are no pages."""
        return self._pages.values

    @property
    def num_terms_N(self) -> np.ndarray:
        """Return int32[N]: its length in terms."""
        return self._num_terms.values

    @property
    def alive_N(self) -> np.ndarray:
        """Return bool[N]: whether it was neither replaced nor deleted."""
        return self._alive.values

    def live_arrays(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the live chunks as `__init__` takes them, documents coded anew, and the old codes."""
        alive_N = self.alive_N
        old_codes, codes = np.unique(self.codes_N[alive_N], return_inverse=True)
        arrays = {
            "row_ids": self.row_ids_N,
            "codes": self.codes_N,
            "ordinals": self.ordinals_N,
            "pages": self.pages_N,
            "num_terms": self.num_terms_N,
        }
        kept = {name: values[alive_N] for name, values in arrays.items()}
        kept["codes"] = codes.astype(np.int32)
        return kept, old_codes

    def extend(
        self, num_documents: int, fresh: Sequence[tuple[int, DocumentRows]], moved: Sequence[tuple[int, int]]
    ) -> None:
        """Take up new documents, whose codes follow on those before.

        Args:
            num_documents: How many; each is in `fresh`, or in `moved` as the second of its pair.
            fresh: Code and chunks of documents whose chunks come at the end.
            moved: Old and new code of documents whose fields changed, their chunks did not.

        Raises:
            ValueError: A row id is not above all before it: the store never uses one again.
        """
        first_code = len(self._first)
        first_G, counts_G = np.zeros((2, num_documents), dtype=np.int64)
        for code, new_code in moved:
            positions = self.positions_of(code)
            first_G[new_code - first_code], counts_G[new_code - first_code] = (
                self._first.values[code],
                len(positions),
            )
            self._counts.values[code] = 0
            self.codes_N[positions] = new_code
            self.touched.append(positions)
        if fresh:
            codes = np.array([code for code, _ in fresh], dtype=np.int64)
            counts = np.array([len(document.row_ids) for _, document in fresh], dtype=np.int64)
            first_G[codes - first_code] = len(self) + np.cumsum(counts) - counts
            counts_G[codes - first_code] = counts
            self._append(np.repeat(codes, counts), [document for _, document in fresh])
        self._first.append(first_G)
        self._counts.append(counts_G)

    def _append(self, codes: np.ndarray, documents: Sequence[DocumentRows]) -> None:
        row_ids = np.concatenate([document.row_ids for document in documents])
        last = self.row_ids_N[-1] if len(self) else 0
        if (np.diff(row_ids, prepend=last) <= 0).any():
            raise ValueError(f"rows {row_ids[:3]}... come after row {last}; rows must ascend")
        num_terms = np.concatenate([document.num_terms for document in documents])
        self._row_ids.append(row_ids)
        self._codes.append(codes)
        self._ordinals.append(np.concatenate([document.ordinals for document in documents]))
        self._pages.append(np.concatenate([document.pages for document in documents]))
        self._num_terms.append(num_terms)
        self._alive.append(np.ones(len(row_ids), dtype=bool))
        self.num_live += len(row_ids)
        self.num_live_terms += int(num_terms.sum(dtype=np.int64))

    def positions_of(self, code: int) -> np.ndarray:
        """Return the positions of a document's live chunks in order, int64[n]."""
        first = self._first.values[code]
        return np.arange(first, first + self._counts.values[code])

    def remove(self, code: int) -> np.ndarray:
        """Mark a document's chunks dead and return their positions."""
        positions = self.positions_of(code)
        self._counts.values[code] = 0
        self.num_live -= len(positions)
        self.num_live_terms -= int(self.num_terms_N[positions].sum(dtype=np.int64))
        self.alive_N[positions] = False
        self.touched.append(positions)
        return positions

    def positions_by_row_id(self, row_ids: np.ndarray) -> np.ndarray:
        """Return the position of each row, int64[n]; -1 for a row that is not here."""
        if not len(self):
            return np.full(len(row_ids), -1, dtype=np.int64)
        row_ids_N = self.row_ids_N
        found = np.minimum(np.searchsorted(row_ids_N, row_ids), len(self) - 1)
        return np.where(row_ids_N[found] == row_ids, found, -1)
