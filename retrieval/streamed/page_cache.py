"""Which pages of which lists are on the device: slots of equal size, least frequently asked list out first.

Frequency is the list's, counted in queries and aged by every batch, kept for lists off the device too. Of
equally frequent pages the one used last goes first: a batch that sweeps over all lists then leaves what was
there before it in place, where least-recently-used would have replaced all of it and never hit.
"""

from __future__ import annotations

import numpy as np

_AGEING = 0.97
"""What a query counts for after one more batch; half after about 23."""


class PageCache:
    """The page table of the device: page -> slot, with pins on pages still to be scored."""

    def __init__(self, list_of_page_P: np.ndarray, num_lists: int, num_slots: int) -> None:
        self._list_of_page_P = list_of_page_P
        self._frequency_C = np.zeros(num_lists)
        self.slot_of_page_P = np.full(len(list_of_page_P), -1, dtype=np.int64)
        self._page_of_slot_S = np.full(num_slots, -1, dtype=np.int64)
        self._pinned_S = np.zeros(num_slots, dtype=bool)
        self._used_S = np.zeros(num_slots, dtype=np.int64)
        self._clock = 0

    @property
    def num_slots(self) -> int:
        """Return the pages that fit."""
        return len(self._page_of_slot_S)

    @property
    def num_resident(self) -> int:
        """Return the pages on the device."""
        return int((self._page_of_slot_S >= 0).sum())

    def frequency(self, pages: np.ndarray) -> np.ndarray:
        """Return how often the pages' lists were asked for, aged."""
        return self._frequency_C[self._list_of_page_P[pages]]

    def count(self, lists: np.ndarray, num_queries: np.ndarray) -> None:
        """Age all frequencies by one batch and add the batch's queries to its lists."""
        self._frequency_C *= _AGEING
        self._frequency_C[lists] += num_queries

    def pin(self, pages: np.ndarray) -> None:
        """Keep resident pages where they are until they are released."""
        self._pinned_S[self.slot_of_page_P[pages]] = True

    def release(self, pages: np.ndarray) -> None:
        """Let pages be replaced again: they have been scored."""
        slots = self.slot_of_page_P[pages]
        self._clock += 1
        self._used_S[slots] = self._clock
        self._pinned_S[slots] = False

    def take(self, pages: np.ndarray) -> np.ndarray:
        """Return a slot for each page, pinned, evicting what must go; ascending, so neighbours copy at once.

        Raises:
            RuntimeError: More pages than slots that are free or unpinned: the schedule is wrong.
        """
        free = np.flatnonzero(self._page_of_slot_S < 0)
        missing = len(pages) - len(free)
        if missing > 0:
            candidates = np.flatnonzero((self._page_of_slot_S >= 0) & ~self._pinned_S)
            if missing > len(candidates):
                raise RuntimeError(
                    f"{len(pages)} pages want slots; {len(free)} are free and {len(candidates)} unpinned "
                    f"of {self.num_slots}"
                )
            frequency = self.frequency(self._page_of_slot_S[candidates])
            victims = candidates[np.lexsort((-self._used_S[candidates], frequency))[:missing]]
            self.slot_of_page_P[self._page_of_slot_S[victims]] = -1
            free = np.concatenate((free, victims))
        slots = np.sort(free[: len(pages)])
        self.slot_of_page_P[pages] = slots
        self._page_of_slot_S[slots] = pages
        self._pinned_S[slots] = True
        return slots

    def clear(self) -> None:
        """Forget every page, pin and frequency."""
        self.slot_of_page_P[:] = -1
        self._page_of_slot_S[:] = -1
        self._pinned_S[:] = False
        self._frequency_C[:] = 0
