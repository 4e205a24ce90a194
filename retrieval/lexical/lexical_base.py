"""The immutable lexical base: an inverted index in memory-mapped files.

    terms.bin          the distinct terms, UTF-8, sorted, end to end
    term_offsets.npy   int64[num_distinct + 1]   where each begins in terms.bin
    indptr.npy         int64[num_distinct + 1]   where each term's postings begin
    positions.npy      int32[num_postings]       rows that hold the term, ascending within a term
    frequencies.npy    uint16[num_postings]      how often, at most 65,535
    lengths.npy        int32[num_rows]           terms of each row; 0 where a position is empty

`LexicalBuilder` writes them. Nothing is read at opening but the headers; a term is found by bisection.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from pathlib import Path

import numpy as np

MAX_FREQUENCY = 65_535
"""Larger term frequencies count as this one, in base and delta alike."""
TERMS_FILE = "terms.bin"
ARRAY_DTYPES = {
    "term_offsets": np.dtype("<i8"),
    "indptr": np.dtype("<i8"),
    "positions": np.dtype("<i4"),
    "frequencies": np.dtype("<u2"),
    "lengths": np.dtype("<i4"),
}
"""The array files and what they hold."""


class LexicalBase:
    """Postings of the rows 0 to num_rows - 1. Safe to read from any thread."""

    def __init__(self, folder: Path) -> None:
        """Map the files of a base.

        Raises:
            ValueError: The files do not belong together; a torn or foreign folder.
            OSError: A file is missing or cannot be read.
        """
        arrays = {name: _mapped(folder / f"{name}.npy", dtype) for name, dtype in ARRAY_DTYPES.items()}
        self.term_offsets = arrays["term_offsets"]
        self.indptr = arrays["indptr"]
        self.positions = arrays["positions"]
        self.frequencies = arrays["frequencies"]
        self.lengths = arrays["lengths"]
        with (folder / TERMS_FILE).open("rb") as file:
            num_bytes = file.seek(0, 2)
            self._terms = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if num_bytes else b""
        if not (
            self.term_offsets.size == self.indptr.size >= 1
            and self.term_offsets[-1] == num_bytes
            and self.indptr[-1] == self.positions.size == self.frequencies.size
        ):
            raise ValueError(f"the files in '{folder}' are not one lexical base; remove the folder")
        # Indexing a memoryview makes a Python int ten times faster than indexing a numpy array.
        self._offsets = memoryview(self.term_offsets)  # pyright: ignore[reportArgumentType]

    @property
    def num_rows(self) -> int:
        """Return how many positions it covers, empty ones included."""
        return self.lengths.size

    @property
    def num_distinct(self) -> int:
        """Return how many distinct terms it holds."""
        return self.indptr.size - 1

    @property
    def num_postings(self) -> int:
        """Return how many (term, row) pairs it holds."""
        return self.positions.size

    @property
    def num_bytes(self) -> int:
        """Return the size of its files without headers."""
        arrays = (self.term_offsets, self.indptr, self.positions, self.frequencies, self.lengths)
        return len(self._terms) + sum(array.nbytes for array in arrays)

    def postings(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Return positions int32[n], ascending, and frequencies uint16[n] of a term; empty if unknown."""
        wanted = term.encode()
        number = bisect_left(range(self.num_distinct), wanted, key=self._term)
        if number == self.num_distinct or self._term(number) != wanted:
            return self.positions[:0], self.frequencies[:0]
        start, stop = self.indptr[number], self.indptr[number + 1]
        return self.positions[start:stop], self.frequencies[start:stop]

    def term(self, number: int) -> str:
        """Return the term of a number from 0 to num_distinct - 1, in sorted order."""
        return self._term(number).decode()

    def _term(self, number: int) -> bytes:
        return self._terms[self._offsets[number] : self._offsets[number + 1]]


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 1 or array.dtype != dtype:
        raise ValueError(f"'{path}' holds {array.dtype}{array.shape}, not {dtype}[n]; remove its folder")
    # A plain view: indexing np.memmap makes a new memmap each time, which costs more than the read.
    return array.view(np.ndarray)
