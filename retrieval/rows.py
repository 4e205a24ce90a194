"""The chunks of one index version by position: where each came from and whether it still lives.

A position is a chunk's place in the vector and lexical segments: 0 to N-1, in the order chunks came. It never
moves until compaction makes a new table. Which document a chunk belongs to is a code into `Columns`; a
document that changes gets a new code, so that what was computed of a code stays true.

Legend: N positions, G documents ever seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retrieval.growing import GrowingArray

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

    def append(
        self,
        code: int,
        row_ids: np.ndarray,
        ordinals: np.ndarray,
        pages: np.ndarray,
        num_terms: np.ndarray,
    ) -> None:
        """Add all chunks of a new document at the end.

        Raises:
            ValueError: The code is not the next one, or a row id is not above all before it: the store never
                uses one again.
        """
        first = len(self)
        if first and len(row_ids) and row_ids[0] <= self.row_ids_N[-1]:
            raise ValueError(f"row {row_ids[0]} comes after row {self.row_ids_N[-1]}; rows must ascend")
        self._span(code, first, len(row_ids))
        self._row_ids.append(row_ids)
        self._codes.append(np.full(len(row_ids), code, dtype=np.int32))
        self._ordinals.append(ordinals)
        self._pages.append(pages)
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

    def recode(self, code: int, new_code: int) -> None:
        """Give a document's chunks a new document's code: its fields changed, they did not."""
        positions = self.positions_of(code)
        self._span(new_code, self._first.values[code], len(positions))
        self._counts.values[code] = 0
        self.codes_N[positions] = new_code
        self.touched.append(positions)

    def _span(self, code: int, first: int, count: int) -> None:
        if code != len(self._first):
            raise ValueError(f"document code {code} is not the next one, {len(self._first)}")
        self._first.push(first)
        self._counts.push(count)

    def positions_by_row_id(self, row_ids: np.ndarray) -> np.ndarray:
        """Return the position of each row, int64[n]; -1 for a row that is not here."""
        if not len(self):
            return np.full(len(row_ids), -1, dtype=np.int64)
        row_ids_N = self.row_ids_N
        found = np.minimum(np.searchsorted(row_ids_N, row_ids), len(self) - 1)
        return np.where(row_ids_N[found] == row_ids, found, -1)
