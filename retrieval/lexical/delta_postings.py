"""Postings of the rows that the base does not hold yet, made in memory from their terms.

Rows are only ever appended, so what was read once stays true: a later search reads the later rows alone.
Measured: 20 us a row, once; a lookup costs its postings.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from retrieval.lexical.lexical_base import MAX_FREQUENCY

ReadTerms = Callable[[int], Sequence[tuple[int, str]]]
"""A row id to the later rows and their terms, parted by spaces, ascending: `Snapshot.delta_terms` of one
version."""
NO_POSTINGS = (np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint16))


class DeltaPostings:
    """Safe to use from any thread as long as no row is added meanwhile."""

    def __init__(self, after_row_id: int) -> None:
        """Start with no rows; those up to `after_row_id` are the base's."""
        self._row_ids = np.zeros(0, dtype=np.int64)
        self._read_up_to = after_row_id
        self._last = after_row_id
        self._entries: dict[str, array[int]] = {}
        """By term: offset and frequency of each row that holds it, in turn."""
        self._lock = threading.Lock()

    def add(self, row_ids: np.ndarray) -> None:
        """Append rows; their ids ascend and are above all earlier ones.

        Raises:
            ValueError: They do not.
        """
        if np.any(np.diff(row_ids, prepend=self._last) <= 0):
            raise ValueError(f"row ids must ascend from above {self._last}; got {row_ids[:3]}...")
        if row_ids.size:
            self._row_ids = np.concatenate((self._row_ids, row_ids.astype(np.int64)))
            self._last = int(row_ids[-1])

    def postings(self, terms: Sequence[str], read: ReadTerms) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return, by term, offsets int32[n] into the delta, ascending, and frequencies uint16[n]."""
        with self._lock:
            if self._read_up_to < self._last:
                self._take_up(read(self._read_up_to))
                self._read_up_to = self._last
            return {term: self._of(term) for term in terms}

    def _take_up(self, rows: Sequence[tuple[int, str]]) -> None:
        """Note the terms of rows; those this index does not know (yet, or any more) are left out."""
        if not rows:
            return
        row_ids = np.array([row_id for row_id, _ in rows], dtype=np.int64)
        offsets = np.searchsorted(self._row_ids, row_ids)
        is_here = self._row_ids[np.minimum(offsets, self._row_ids.size - 1)] == row_ids
        entries = self._entries
        for offset, here, (_, terms) in zip(offsets.tolist(), is_here.tolist(), rows, strict=True):
            if not here:
                continue
            for term, count in Counter(terms.split()).items():
                entry = entries.get(term)
                if entry is None:
                    entry = entries[term] = array("i")
                entry.extend((offset, count if count < MAX_FREQUENCY else MAX_FREQUENCY))

    def _of(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        entry = self._entries.get(term)
        if entry is None:
            return NO_POSTINGS
        # Copied: an array that is looked at cannot grow.
        pairs = np.array(entry, dtype=np.int32)
        return pairs[0::2], pairs[1::2].astype(np.uint16)
