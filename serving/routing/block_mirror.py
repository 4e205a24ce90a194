"""Which blocks the engine's prefix cache holds, followed from outside by the events it publishes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

BlockHash = Hashable
"""The engine's name of a block: of its tokens and all before them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks entered the cache, one after the other."""

    hashes: tuple[BlockHash, ...]
    """Their names."""
    parent: BlockHash | None
    """The block before the first; None at the start of a prompt."""
    token_ids: tuple[int, ...]
    """Tokens of all of them."""
    apart: Hashable
    """What keeps a prompt's first block apart from one of equal tokens: its salt and adapter."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks left the cache."""

    hashes: tuple[BlockHash, ...]
    """Their names."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """The cache was emptied."""


CacheEvent = Stored | Removed | Cleared

_Place = tuple[Hashable, tuple[int, ...]]
"""What stands before a block, and its tokens."""


@dataclass(slots=True)
class _Block:
    place: _Place
    num_copies: int = 0
    """Two requests that compute the same at once leave two copies."""


@dataclass(slots=True)
class BlockMirror:
    """The cache's blocks, by what they hold."""

    block_size: int
    """Tokens of a block."""
    _blocks: dict[BlockHash, _Block] = field(default_factory=dict)
    _by_place: dict[_Place, BlockHash] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: BlockHash) -> bool:
        return name in self._blocks

    def apply(self, events: Iterable[CacheEvent]) -> list[BlockHash]:
        """Follow events in the order they were published; returns the blocks that left."""
        gone: list[BlockHash] = []
        for event in events:
            if isinstance(event, Stored):
                self._store(event)
            elif isinstance(event, Removed):
                gone += [name for name in event.hashes if self._remove(name)]
            else:
                gone += self._blocks
                self._blocks.clear()
                self._by_place.clear()
        return gone

    def held(self, token_ids: Sequence[int], apart: Hashable) -> list[BlockHash]:
        """Return the blocks that a prompt would find, from its first on.

        Args:
            token_ids: The prompt.
            apart: Its salt and adapter, as in `Stored.apart`.
        """
        found: list[BlockHash] = []
        before: Hashable = (None, apart)
        for end in range(self.block_size, len(token_ids) + 1, self.block_size):
            name = self._by_place.get((before, tuple(token_ids[end - self.block_size : end])))
            if name is None:
                break
            found.append(name)
            before = name
        return found

    def _store(self, event: Stored) -> None:
        before: Hashable = (None, event.apart) if event.parent is None else event.parent
        for index, name in enumerate(event.hashes):
            start = index * self.block_size
            place = (before, event.token_ids[start : start + self.block_size])
            block = self._blocks.setdefault(name, _Block(place))
            block.num_copies += 1
            self._by_place[place] = name
            before = name

    def _remove(self, name: BlockHash) -> bool:
        block = self._blocks.get(name)
        if block is None:
            return False
        block.num_copies -= 1
        if block.num_copies:
            return False
        del self._blocks[name]
        del self._by_place[block.place]
        return True
