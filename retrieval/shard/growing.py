"""A one-dimensional array that grows at its end in amortised constant time."""

from __future__ import annotations

import numpy as np

_SPARE_SHARE = 8
_MIN_SPARE = 1024


class GrowingArray:
    """Values in one block of memory with room to spare; views taken before it grows keep their values."""

    def __init__(self, values: np.ndarray) -> None:
        """Copy the first values; their dtype is kept."""
        self._block = _with_room(values)
        self._length = len(values)

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> np.ndarray:
        """Return a view of all values; writing to it writes here."""
        return self._block[: self._length]

    def append(self, values: np.ndarray) -> None:
        """Add values at the end."""
        end = self._length + len(values)
        if end > len(self._block):
            grown = np.empty(max(end, 2 * len(self._block)), dtype=self._block.dtype)
            grown[: self._length] = self.values
            self._block = grown
        self._block[self._length : end] = values
        self._length = end


def _with_room(values: np.ndarray) -> np.ndarray:
    block = np.empty(len(values) + len(values) // _SPARE_SHARE + _MIN_SPARE, dtype=values.dtype)
    block[: len(values)] = values
    return block
