"""What every base segment of vectors is, how hard it may search, and what a selection of rows is.

Nothing here imports faiss or torch. Scores are inner products of unit vectors, which is the cosine; higher is
better. A position is a row's place in the matrix a base was built from.

Legend: N rows, D dimensions, Q queries, K hits.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from retrieval.versions import IndexKind


class IndexTooLarge(Exception):
    """A base segment would need more memory than there is; the message says which kind would fit."""


class NoSuchDevice(Exception):
    """A GPU kind was asked for where there is no GPU, or where the installed FAISS cannot use it."""


class CorruptBase(Exception):
    """The files of a base segment are not what `save` wrote; build the segment again."""


@dataclass(frozen=True, slots=True)
class SearchEffort:
    """How hard an approximate base searches: more finds more and takes longer."""

    probes: int = 64
    """Lists visited, or candidates kept while walking (HNSW `efSearch`, CAGRA `itopk_size`)."""
    rerank: int = 8
    """Candidates scored exactly per hit wanted (FAISS calls it `k_factor`, default 1: recall 0.17 for PQ)."""


class Selected(Protocol):
    """Which rows a search may return."""

    @property
    def keep(self) -> np.ndarray | None:
        """bool[N], false for dead rows, never written to; None when every live row is kept."""
        ...

    @property
    def count(self) -> int:
        """Rows kept."""
        ...

    @property
    def name(self) -> Hashable:
        """What selects them, the same for one filter however rows come and go.

        A copy of the rows that a filter keeps is found again by it, and checked against `keep`.
        """
        ...


class VectorBase(Protocol):
    """An immutable structure over a matrix of unit vectors. One contract suite runs over all kinds."""

    effort: SearchEffort
    """What `search` spends unless told; the tuner sets it."""
    measured_recall: float | None
    """Recall@10 the tuner measured at `effort`; None for exact kinds and for untuned ones."""

    @property
    def kind(self) -> IndexKind:
        """Return which structure it is."""
        ...

    @property
    def matrix_ND(self) -> np.ndarray:
        """Return float32[N, D]: the unit vectors it was built from, in memory or mapped from a file."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Return the memory it holds itself, without the matrix."""
        ...

    @property
    def max_probes(self) -> int:
        """Return the most probes that change anything; 1 where effort has no meaning."""
        ...

    def search_us(self, effort: SearchEffort) -> float:
        """Return about how long one query takes one core, in microseconds; only ratios matter."""
        ...

    def search(
        self, queries_QD: np.ndarray, k: int, keep: np.ndarray | None, effort: SearchEffort | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's nearest rows, exactly scored, best first, ties by position.

        Args:
            queries_QD: float32[Q, D], finite, unit length.
            k: Hits wanted, at least 1.
            keep: bool[N], the rows that may be returned; None for all. No other row ever is.
            effort: How hard an unfiltered search would try, None for `self.effort`; a filtered one visits
                more where that is needed to see as much.

        Returns:
            (float32[Q, K], int64[Q, K]): scores and positions, padded with -inf and -1.
        """
        ...

    def save(self, folder: Path) -> list[Path]:
        """Write what `open_base` needs beside the matrix and return the files; exact kinds write only a note.

        The caller owns durability: files are neither synced nor checksummed here.
        """
        ...
