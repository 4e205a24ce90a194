"""Which entries of a bounded store stay: those used often and dear to compute for the room they take.

Source: GreedyDual-Size-Frequency (Cherkasova 1998), which RAGCache (Jin et al. 2024) uses for KV: an entry is
worth clock + uses x cost / size; whatever leaves, or is not let in, sets the clock, so that favourites age.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    cost: float
    num_uses: int
    worth: float


class BoundedEntries:
    """Names, sizes and worths of what a store holds within a number of bytes; holds no data itself.

    Args:
        max_bytes: Most bytes of all entries, 0 or more.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Bytes of all entries now."""
        self._entries: dict[str, _Entry] = {}
        self._clock = 0.0

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def by_worth(self) -> list[str]:
        """Return every name, the one that would leave first at the front."""
        return sorted(self._entries, key=lambda key: self._entries[key].worth)

    def use(self, key: str) -> None:
        """Count one more use of an entry."""
        entry = self._entries[key]
        entry.num_uses += 1
        entry.worth = self._worth(entry)

    def add(self, key: str, num_bytes: int, cost: float) -> list[str] | None:
        """Take an entry in and return the names of those that leave for it.

        Returns None where the entry is not let in: it does not fit at all, or is worth less than what would
        have to leave.

        Args:
            key: Not in the store.
            num_bytes: Its size, more than 0.
            cost: What it takes to make it again, in any unit that is the same for all.
        """
        entry = _Entry(num_bytes, cost, 1, 0.0)
        entry.worth = self._worth(entry)
        leaving: list[str] = []
        room = self.max_bytes - self.num_bytes
        for other in self.by_worth():
            if room >= num_bytes:
                break
            if self._entries[other].worth > entry.worth:
                self._clock = entry.worth
                return None
            leaving.append(other)
            room += self._entries[other].num_bytes
        if room < num_bytes:
            return None
        for other in leaving:
            self._clock = max(self._clock, self._entries[other].worth)
            self.remove(other)
        self._entries[key] = entry
        self.num_bytes += num_bytes
        return leaving

    def remove(self, key: str) -> None:
        """Forget an entry; unknown names are ignored."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes

    def _worth(self, entry: _Entry) -> float:
        return self._clock + entry.num_uses * entry.cost / entry.num_bytes
