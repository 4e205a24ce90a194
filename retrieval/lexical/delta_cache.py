"""Postings of rows the base does not hold yet, read from the store term by term and kept.

Rows are only ever appended, so what was read once stays true: a later search asks for later rows alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.lexical.lexical_base import MAX_FREQUENCY

DeltaPostings = Callable[[Sequence[str], int], Mapping[str, Sequence[tuple[int, int]]]]
"""(terms, after_row_id) to, by term, (row id, frequency) of later rows: `Snapshot.delta_postings` of one
version."""
MAX_CACHED_POSTINGS = 2_000_000
"""Postings kept, least recently used terms dropped first: at most 12 MB."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of one term."""

    up_to_row_id: int
    """Later rows have not been asked for."""
    offsets: np.ndarray
    """int32[n], ascending: rows of the delta that hold the term."""
    frequencies: np.ndarray
    """uint16[n]."""


NO_POSTINGS = (np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint16))


class DeltaCache:
    """Safe to use from any thread as long as no row is added meanwhile."""

    def __init__(self, after_row_id: int) -> None:
        """Start with no rows; those up to `after_row_id` are the base's."""
        self._after_row_id = after_row_id
        self._row_ids = np.zeros(0, dtype=np.int64)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._num_cached = 0
        self._lock = threading.Lock()

    @property
    def num_rows(self) -> int:
        """Return the rows of the delta."""
        return self._row_ids.size

    def add(self, row_ids: np.ndarray) -> None:
        """Append rows; their ids ascend and are above all earlier ones.

        Raises:
            ValueError: They do not.
        """
        last = self._row_ids[-1] if self._row_ids.size else self._after_row_id
        if np.any(np.diff(row_ids, prepend=last) <= 0):
            raise ValueError(f"row ids must ascend from above {last}; got {row_ids[:3]}...")
        self._row_ids = np.concatenate((self._row_ids, row_ids.astype(np.int64)))

    def postings(self, terms: Sequence[str], read: DeltaPostings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return, by term, offsets int32[n] into the delta, ascending, and frequencies uint16[n]."""
        if not self._row_ids.size:
            return dict.fromkeys(terms, NO_POSTINGS)
        last = int(self._row_ids[-1])
        with self._lock:
            known = {term: self._known.get(term) for term in terms}
        behind: dict[int, list[str]] = {}
        for term, entry in known.items():
            after = entry.up_to_row_id if entry else self._after_row_id
            if after < last:
                behind.setdefault(after, []).append(term)
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for after, wanted in behind.items():
            fresh = read(wanted, after)
            for term in wanted:
                found[term] = self._located(fresh.get(term, ()))
        with self._lock:
            return {term: self._remember(term, known[term], found.get(term), last) for term in known}

    def _located(self, rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets of rows; those this index does not know (yet, or any more) are left out."""
        if not rows:
            return NO_POSTINGS
        values = np.array(rows, dtype=np.int64)
        values = values[np.argsort(values[:, 0], kind="stable")]
        offsets = np.searchsorted(self._row_ids, values[:, 0])
        here = offsets < self._row_ids.size
        here[here] = self._row_ids[offsets[here]] == values[here, 0]
        frequencies = np.minimum(values[here, 1], MAX_FREQUENCY)
        return offsets[here].astype(np.int32), frequencies.astype(np.uint16)

    def _remember(
        self, term: str, before: _Known | None, fresh: tuple[np.ndarray, np.ndarray] | None, last: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if fresh is None:
            assert before is not None
            if term in self._known:
                self._known.move_to_end(term)
            return before.offsets, before.frequencies
        if before is not None:
            fresh = (
                np.concatenate((before.offsets, fresh[0])),
                np.concatenate((before.frequencies, fresh[1])),
            )
        replaced = self._known.pop(term, None)
        # Terms nobody has are worth one entry too: asking for them again costs a query of the store.
        self._num_cached += fresh[0].size + 1 - (replaced.offsets.size + 1 if replaced else 0)
        self._known[term] = _Known(last, *fresh)
        while self._num_cached > MAX_CACHED_POSTINGS and len(self._known) > 1:
            _, dropped = self._known.popitem(last=False)
            self._num_cached -= dropped.offsets.size + 1
        return fresh
