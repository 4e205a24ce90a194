"""One index version's lexical leg: the base, the rows after it, and which of them live.

Statistics and scores count live rows only. Positions are the caller's: 0 to num_rows - 1, the base's first,
then the delta's in the order they were added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.lexical.bm25 import Bm25, QueryWeights, query_weights
from retrieval.lexical.delta_postings import NO_POSTINGS, DeltaPostings, ReadTerms
from retrieval.lexical.lexical_base import LexicalBase
from retrieval.reader import TermStats

TieKey = Callable[[np.ndarray], Sequence[Any]]
"""Positions to keys that order rows of equal score, the same in any sharding: chunk ids."""

_Postings = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
# (positions, frequencies) in the base and (offsets, frequencies) in the delta.
_NO_LENGTHS = np.zeros(0, dtype=np.int32)
_LOOKUP_COST = 16
"""Times as long a bisection for one dead row takes as looking at the life of one row."""


class LexicalSegments:
    """BM25 over a base and a delta. Searches may run side by side; `add` and `remove` must run alone."""

    def __init__(self, parameters: Bm25, base: LexicalBase | None = None, base_row_id: int = 0) -> None:
        """Start with the rows of a base, all alive, or with none.

        Args:
            parameters: k1 and b.
            base: The base segment; None while there is none.
            base_row_id: The last row id the base covers; the terms of later rows come through `ReadTerms`.
        """
        self._parameters = parameters
        self._base = base
        self._base_lengths = base.lengths if base is not None else _NO_LENGTHS
        self._delta = DeltaPostings(base_row_id)
        self._delta_lengths = _NO_LENGTHS
        self._base_alive = np.ones(self._base_lengths.size, dtype=bool)
        self._delta_alive = np.zeros(0, dtype=bool)
        self._dead_base = np.zeros(0, dtype=np.int32)
        self._num_live = self._base_lengths.size
        self._num_terms = int(self._base_lengths.sum(dtype=np.int64))
        self._accumulators: list[np.ndarray] = []

    @property
    def num_rows(self) -> int:
        """Return how many positions there are, dead ones included."""
        return self._base_lengths.size + self._delta_lengths.size

    @property
    def num_delta_rows(self) -> int:
        """Return how many of them are after the base."""
        return self._delta_lengths.size

    def add(self, row_ids: np.ndarray, num_terms: np.ndarray) -> None:
        """Append live rows.

        Args:
            row_ids: int64[n], ascending, above all earlier ones.
            num_terms: int32[n], length of each row in terms.
        """
        self._delta.add(row_ids)
        self._delta_lengths = np.concatenate((self._delta_lengths, num_terms.astype(np.int32)))
        self._delta_alive = np.concatenate((self._delta_alive, np.ones(num_terms.size, dtype=bool)))
        self._num_live += num_terms.size
        self._num_terms += int(num_terms.sum(dtype=np.int64))

    def remove(self, positions: np.ndarray) -> None:
        """Mark rows dead; those that are dead already stay so."""
        positions = np.unique(np.asarray(positions, dtype=np.int64))
        num_base = self._base_lengths.size
        in_base, in_delta = positions[positions < num_base], positions[positions >= num_base] - num_base
        in_base = in_base[self._base_alive[in_base]]
        in_delta = in_delta[self._delta_alive[in_delta]]
        self._base_alive[in_base] = False
        self._delta_alive[in_delta] = False
        if in_base.size:
            self._dead_base = np.sort(np.concatenate((self._dead_base, in_base.astype(np.int32))))
        self._num_live -= in_base.size + in_delta.size
        self._num_terms -= int(
            self._base_lengths[in_base].sum(dtype=np.int64)
            + self._delta_lengths[in_delta].sum(dtype=np.int64)
        )

    def stats(self, terms: Sequence[str], delta: ReadTerms) -> TermStats:
        """Return the statistics of the live rows, for `search` here or to be added to other shards'."""
        return self._stats(self._postings(terms, delta))

    def search(
        self,
        terms: Sequence[str],
        k: int,
        delta: ReadTerms,
        *,
        keep: np.ndarray | None = None,
        stats: TermStats | None = None,
        tie_key: TieKey | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows: scores float32[n] and positions int64[n], n at most k, best first.

        Args:
            terms: From `query_terms`.
            k: Most rows returned, at least 1.
            delta: Reads terms of rows after the base, at the moment these segments have followed to.
            keep: bool[num_rows], the rows that may be returned; None for all live ones. Dead rows are
                never returned, whatever it says.
            stats: The whole collection's; None when these rows are the collection.
            tie_key: Orders rows of equal score, also at the k-th place; None orders them by position.
        """
        postings = self._postings(terms, delta)
        weights = query_weights(postings, stats or self._stats(postings), self._parameters)
        scores, positions = self._scored(weights, postings, keep, k)
        if positions.size > k:
            # Every row that ties with the k-th stays until the key has decided.
            best = scores >= np.partition(scores, positions.size - k)[positions.size - k]
            scores, positions = scores[best], positions[best]
        order = np.lexsort((positions, -scores))
        scores, positions = scores[order], positions[order]
        if tie_key is not None:
            positions = _ties_ordered(scores, positions, tie_key)
        return scores[:k], positions[:k]

    def _postings(self, terms: Sequence[str], delta: ReadTerms) -> Mapping[str, _Postings]:
        """Return each term's postings, dead rows included."""
        fresh = self._delta.postings(terms, delta)
        if self._base is None:
            return {term: (NO_POSTINGS, fresh[term]) for term in fresh}
        return {term: (self._base.postings(term), fresh[term]) for term in fresh}

    def _stats(self, postings: Mapping[str, _Postings]) -> TermStats:
        chunks_with = {}
        for term, ((base, _), (delta, _)) in postings.items():
            in_base = base.size - self._num_dead_among(base)
            chunks_with[term] = int(in_base + np.count_nonzero(self._delta_alive[delta]))
        return TermStats(self._num_live, self._num_terms, chunks_with)

    def _num_dead_among(self, positions: np.ndarray) -> int:
        """Return how many of a base term's rows, which ascend, are dead."""
        dead = self._dead_base
        if not dead.size or not positions.size:
            return 0
        if dead.size * _LOOKUP_COST > positions.size:
            return positions.size - int(np.count_nonzero(self._base_alive[positions]))
        places = np.minimum(np.searchsorted(positions, dead), positions.size - 1)
        return int(np.count_nonzero(positions[places] == dead))

    def _scored(
        self, weights: QueryWeights, postings: Mapping[str, _Postings], keep: np.ndarray | None, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and positions of rows that may be returned, the k best and their ties among them."""
        num_base = self._base_lengths.size
        base_mask, delta_mask = self._masks(keep)
        totals = self._accumulator()
        touched: list[np.ndarray] = []
        closed = False
        try:
            for number, (term, idf) in enumerate(weights.terms):
                base, fresh = postings[term]
                closed = closed or _decided(totals, touched, k, base[0].size, weights.most_after(number))
                for (offsets, frequencies), mask, lengths, start in (
                    (base, base_mask, self._base_lengths, 0),
                    (fresh, delta_mask, self._delta_lengths, num_base),
                ):
                    if not offsets.size:
                        continue
                    if closed:
                        wanted = totals[start : start + lengths.size][offsets] > 0
                        offsets, frequencies = offsets[wanted], frequencies[wanted]
                    elif mask is not None:
                        wanted = mask[offsets]
                        offsets, frequencies = offsets[wanted], frequencies[wanted]
                    positions = offsets + np.int32(start)
                    before = totals[positions]
                    if not closed:
                        touched.append(positions[before == 0])
                    totals[positions] = before + weights.contributions(idf, frequencies, lengths[offsets])
            found = np.concatenate(touched) if touched else np.zeros(0, dtype=np.int32)
            return totals[found], found.astype(np.int64)
        finally:
            for positions in touched:
                totals[positions] = 0
            self._accumulators.append(totals)

    def _masks(self, keep: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray]:
        num_base = self._base_lengths.size
        if keep is None:
            return self._base_alive if self._dead_base.size else None, self._delta_alive
        if keep.shape != (self.num_rows,):
            raise ValueError(f"keep must have {self.num_rows} entries, one a position; got {keep.shape}")
        in_base, in_delta = keep[:num_base], keep[num_base:]
        kept = in_base & self._base_alive if self._dead_base.size else in_base
        return kept, in_delta & self._delta_alive

    def _accumulator(self) -> np.ndarray:
        """Return a float32[>= num_rows] of zeros; the caller clears what it touched and gives it back."""
        # One a search under way, not one a thread: thread pools hold dozens of idle threads.
        try:
            held = self._accumulators.pop()
        except IndexError:
            held = np.zeros(0, dtype=np.float32)
        if held.size < self.num_rows:
            held = np.zeros(self.num_rows + self.num_rows // 8 + 1024, dtype=np.float32)
        return held


def _ties_ordered(scores: np.ndarray, positions: np.ndarray, tie_key: TieKey) -> np.ndarray:
    """Return the positions of descending scores with those of equal ones ordered by their keys."""
    equals_next = scores[:-1] == scores[1:]
    if not equals_next.any():
        return positions
    in_tie = np.append(equals_next, False) | np.insert(equals_next, 0, False)
    tied = np.flatnonzero(in_tie)
    # Only these need their keys. Sorted by score first, each stretch of equals stays where it is.
    keys = dict(zip(tied.tolist(), tie_key(positions[tied]), strict=True))
    ordered = positions.copy()
    ordered[tied] = positions[sorted(tied.tolist(), key=lambda row: (-scores[row], keys[row]))]
    return ordered


def _decided(
    totals: np.ndarray, touched: Sequence[np.ndarray], k: int, num_postings: int, most: float
) -> bool:
    """Return whether rows not touched yet are out of reach of the k best: later terms add at most `most`.

    Terms come rarest first, so the long lists of common terms need not be scored in full.
    Source: MaxScore, Turtle and Flood, 1995.
    """
    num_touched = sum(positions.size for positions in touched)
    if num_touched < k or num_postings <= num_touched:
        return False
    scores = totals[np.concatenate(touched)]
    # Strictly above, with room for float32 sums: a row that ties with the k-th must stay in reach.
    return float(np.partition(scores, num_touched - k)[num_touched - k]) > most * (1 + 1e-4)
