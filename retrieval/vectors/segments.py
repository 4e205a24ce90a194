"""All vectors of one index version in one shard: an immutable base, an exact delta, and the rows that died.

A position counts base rows first, then delta rows in the order they came; it never moves. `search` picks how
to answer by how much a selection keeps, and answers exactly wherever an approximate base found too few.

Legend: N rows, D dimensions, Q queries, K hits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from retrieval.vectors import codecs, planner
from retrieval.vectors import exact as exact_search
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import SearchEffort, Selected, VectorBase

_MAX_BLOCK_BYTES = 128 * 1024 * 1024
_MIN_DEAD_ROWS = 1000
_SPARE_SHARE = 4
_MIN_KEPT_OF_BLOCK = 0.75
"""Share of a block's rows that must still be kept; below it is copied anew."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The base rows that one selection kept at some time, copied out."""

    positions_B: np.ndarray
    rows_BD: np.ndarray


class VectorSegments:
    """Base, delta and tombstones. Searches may overlap; a change needs the caller's lock."""

    def __init__(self, base: VectorBase, settings: VectorSettings | None = None) -> None:
        """Start with the rows of `base`, all alive."""
        self.base = base
        self._settings = settings or VectorSettings()
        self._num_base, self._dim = base.matrix_ND.shape
        self._delta_ND = np.empty((0, self._dim), dtype=np.float32)
        self._num_delta = 0
        self._alive_N = np.ones(self._num_base, dtype=bool)
        self._num_dead_base = 0
        self._num_dead_delta = 0
        self._blocks: OrderedDict[Hashable, _Block] = OrderedDict()
        self._blocks_lock = Lock()

    def __len__(self) -> int:
        return self._num_base + self._num_delta

    @property
    def dim(self) -> int:
        """Return the numbers a vector has."""
        return self._dim

    @property
    def num_live(self) -> int:
        """Return the rows that are alive."""
        return len(self) - self._num_dead_base - self._num_dead_delta

    @property
    def num_delta(self) -> int:
        """Return the rows that came after the base, dead ones included."""
        return self._num_delta

    @property
    def resident_bytes(self) -> int:
        """Return the memory held: structures, delta and copied blocks; a mapped matrix does not count."""
        with self._blocks_lock:
            blocks = sum(block.rows_BD.nbytes + block.positions_B.nbytes for block in self._blocks.values())
        return self.base.resident_bytes + self._delta_ND.nbytes + self._alive_N.nbytes + blocks

    def add(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Add rows at the end and return their positions, int64[n].

        Args:
            vectors_ND: float32[n, D], unit length.

        Raises:
            ValueError: Another dimension, NaN or infinity; nothing was added.
        """
        vectors_ND = codecs.checked(vectors_ND, self._dim)
        first, end = self._num_delta, self._num_delta + len(vectors_ND)
        if end > len(self._delta_ND):
            grown = np.empty((max(1024, end + end // _SPARE_SHARE), self._dim), dtype=np.float32)
            grown[:first] = self._delta_ND[:first]
            self._delta_ND = grown
        self._delta_ND[first:end] = vectors_ND
        self._num_delta = end
        if len(self) > len(self._alive_N):
            alive_N = np.ones(self._num_base + len(self._delta_ND), dtype=bool)
            alive_N[: len(self._alive_N)] = self._alive_N
            self._alive_N = alive_N
        return np.arange(self._num_base + first, self._num_base + end)

    def remove(self, positions: np.ndarray) -> None:
        """Mark rows dead; no search returns them from now on, whatever its selection says.

        Raises:
            ValueError: A position is not of this index.
        """
        positions = np.unique(np.asarray(positions, dtype=np.int64))
        if len(positions) and not 0 <= positions[0] <= positions[-1] < len(self):
            raise ValueError(
                f"positions must be from 0 to {len(self) - 1}; got {positions[[0, -1]].tolist()}"
            )
        dying = positions[self._alive_N[positions]]
        num_base = int(np.searchsorted(dying, self._num_base))
        self._alive_N[dying] = False
        self._num_dead_base += num_base
        self._num_dead_delta += len(dying) - num_base

    def exact_vectors(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, float32[n, D], in the order asked."""
        positions = np.asarray(positions, dtype=np.int64)
        vectors_ND = np.empty((len(positions), self._dim), dtype=np.float32)
        in_base = positions < self._num_base
        vectors_ND[in_base] = self.base.matrix_ND[positions[in_base]]
        vectors_ND[~in_base] = self._delta_ND[positions[~in_base] - self._num_base]
        return vectors_ND

    def live_positions(self) -> np.ndarray:
        """Return the positions of live rows, int64[n], ascending."""
        return np.flatnonzero(self._alive_N[: len(self)])

    def needs_compaction(self) -> str | None:
        """Return why a new base is due, or None."""
        num_dead = self._num_dead_base + self._num_dead_delta
        if self._num_delta > self._settings.delta_max_rows:
            return f"{self._num_delta:,} rows in the delta, more than {self._settings.delta_max_rows:,}"
        if num_dead > max(_MIN_DEAD_ROWS, self._settings.max_dead_share * len(self)):
            return f"{num_dead:,} of {len(self):,} rows are dead"
        return None

    def search(
        self,
        queries_QD: np.ndarray,
        k: int,
        selection: Selected | None = None,
        exact: bool = False,
        effort: SearchEffort | None = None,
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Return each query's nearest rows among those alive and selected, best first, ties by position.

        Args:
            queries_QD: float32[Q, D], unit length.
            k: Hits wanted, at least 1.
            selection: Which rows may be returned, over all N positions; None for every live one.
            exact: Whether to answer exactly even where the base is approximate.
            effort: How hard an approximate base searches; None for what it was tuned to.

        Returns:
            (float32[Q, K], int64[Q, K], plan): scores, positions, and how it was answered. K is `k` or the
            rows kept, whichever is less, and every place is filled.

        Raises:
            ValueError: Another dimension, NaN, infinity, k below 1, or a bitmap of another length.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        queries_QD = codecs.checked(queries_QD, self._dim)
        keep_N, kept_base, kept_delta = self._kept(selection)
        k = min(k, kept_base + kept_delta)
        plan = planner.choose(
            self.base,
            kept_base,
            kept_delta,
            len(queries_QD),
            self._settings.gather_max_rows,
            exact=exact,
            effort=effort,
        )
        if not k or not len(queries_QD):
            return (*exact_search.padded(len(queries_QD), k), plan.text)
        name = None if selection is None else selection.name
        scores_QK, positions_QK, num_again = self._of_base(queries_QD, k, keep_N, kept_base, plan, name)
        if kept_delta:
            scores_QK, positions_QK = exact_search.merged(
                scores_QK, positions_QK, *self._of_delta(queries_QD, k, keep_N, kept_delta), k
            )
        again = f", {num_again} of {len(queries_QD)} queries again exactly" if num_again else ""
        return scores_QK, positions_QK, plan.text + again

    def _kept(self, selection: Selected | None) -> tuple[np.ndarray | None, int, int]:
        """Return the live rows a selection keeps (None for all there are), and their counts by part."""
        num_dead = self._num_dead_base + self._num_dead_delta
        if selection is None or selection.keep is None:
            if not num_dead:
                return None, self._num_base, self._num_delta
            keep_N = self._alive_N[: len(self)]
        else:
            keep_N = np.asarray(selection.keep, dtype=bool)
            if keep_N.shape != (len(self),):
                raise ValueError(f"a selection has shape {keep_N.shape}, the index {len(self):,} rows")
            if num_dead:
                keep_N = keep_N & self._alive_N[: len(self)]
        kept_base = int(np.count_nonzero(keep_N[: self._num_base]))
        return keep_N, kept_base, int(np.count_nonzero(keep_N[self._num_base :]))

    def _of_base(
        self,
        queries_QD: np.ndarray,
        k: int,
        keep_N: np.ndarray | None,
        kept: int,
        plan: planner.Plan,
        name: Hashable,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the hits among base rows, and how many queries the base alone left short."""
        threads, matrix_ND = self._settings.num_threads, self.base.matrix_ND
        keep_B = None if keep_N is None or kept == self._num_base else keep_N[: self._num_base]
        if plan.path == "nothing":
            return (*exact_search.padded(len(queries_QD), k), 0)
        if plan.path == "gather" and keep_B is not None:
            block, kept_B = self._block(name, keep_B, kept)
            scores_QK, places_QK = exact_search.search(queries_QD, block.rows_BD, k, kept_B, threads)
            return scores_QK, np.where(places_QK < 0, -1, block.positions_B[places_QK]), 0
        if plan.path == "exact":
            return (*exact_search.search(queries_QD, matrix_ND, k, keep_B, threads), 0)
        scores_QK, positions_QK = self.base.search(queries_QD, k, keep_B, plan.effort)
        short = np.flatnonzero((positions_QK >= 0).sum(axis=1) < min(k, kept))
        if len(short):
            # Its lists or walk held too few kept rows; fewer hits than exist is never an answer.
            some_QD = np.ascontiguousarray(queries_QD[short])
            scores_QK[short], positions_QK[short] = exact_search.search(
                some_QD, matrix_ND, k, keep_B, threads
            )
        return scores_QK, positions_QK, len(short)

    def _of_delta(
        self, queries_QD: np.ndarray, k: int, keep_N: np.ndarray | None, kept: int
    ) -> tuple[np.ndarray, np.ndarray]:
        keep_D = None if keep_N is None or kept == self._num_delta else keep_N[self._num_base :]
        delta_ND = self._delta_ND[: self._num_delta]
        scores_QK, places_QK = exact_search.search(
            queries_QD, delta_ND, k, keep_D, self._settings.num_threads
        )
        return scores_QK, np.where(places_QK < 0, -1, places_QK + self._num_base)

    def _block(self, name: Hashable, keep_N: np.ndarray, kept: int) -> tuple[_Block, np.ndarray | None]:
        """Return a copy of rows that holds the kept ones, made once, and which of it are kept now.

        Rows that came later are not in it, and one that died is masked: neither costs the copy again.
        """
        with self._blocks_lock:
            block = self._blocks.get(name)
            if block is not None:
                self._blocks.move_to_end(name)
        if block is not None and kept >= _MIN_KEPT_OF_BLOCK * len(block.positions_B):
            kept_B = keep_N[block.positions_B]
            if np.count_nonzero(kept_B) == kept:
                return block, None if kept == len(kept_B) else kept_B
        positions_B = np.flatnonzero(keep_N)
        block = _Block(positions_B, self.base.matrix_ND[positions_B])
        with self._blocks_lock:
            self._blocks[name] = block
            self._blocks.move_to_end(name)
            while sum(other.rows_BD.nbytes for other in self._blocks.values()) > _MAX_BLOCK_BYTES:
                self._blocks.popitem(last=False)
        return block, None
