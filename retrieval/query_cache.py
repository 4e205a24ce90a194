"""Vectors of queries seen lately, least recently used dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

_V = TypeVar("_V")
_ENTRIES_PER_TOKENS = 16
"""Queries kept without their token vectors to one kept with them: those take about 20 times the memory."""


class QueryCache:
    """A bounded map from query text to vector; safe to use from several tasks and threads."""

    def __init__(self, max_entries: int) -> None:
        """Start empty; 0 entries keeps nothing."""
        self._vectors: _Recent[np.ndarray] = _Recent(max_entries)
        self._with_tokens: _Recent[tuple[np.ndarray, np.ndarray]] = _Recent(
            -(-max_entries // _ENTRIES_PER_TOKENS)
        )

    async def vectors(
        self, texts: Sequence[str], embed: Callable[[list[str]], Awaitable[np.ndarray]]
    ) -> np.ndarray:
        """Return float32[len(texts), dim]; `embed` is called once, with the distinct texts not kept."""
        import numpy as np

        known = self._vectors.find(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing or not texts:
            fresh_ND = await embed(missing)
            if not texts:
                return fresh_ND
            # Copies: a row alone must not keep the whole batch in memory.
            fresh = {text: vector_D.copy() for text, vector_D in zip(missing, fresh_ND, strict=True)}
            known.update(fresh)
            self._vectors.keep(fresh)
        return np.stack([known[text] for text in texts])

    async def vectors_with_tokens(
        self,
        texts: Sequence[str],
        embed: Callable[[list[str]], Awaitable[tuple[np.ndarray, list[np.ndarray]]]],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return float32[len(texts), dim] and each query's float32[num_tokens, dim]; see `vectors`."""
        import numpy as np

        known = self._with_tokens.find(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing or not texts:
            fresh_ND, tokens = await embed(missing)
            if not texts:
                return fresh_ND, []
            fresh = {
                text: (vector_D.copy(), tokens_TD)
                for text, vector_D, tokens_TD in zip(missing, fresh_ND, tokens, strict=True)
            }
            known.update(fresh)
            self._with_tokens.keep(fresh)
            self._vectors.keep({text: vector_D for text, (vector_D, _) in fresh.items()})
        return np.stack([known[text][0] for text in texts]), [known[text][1] for text in texts]


class _Recent(Generic[_V]):
    """The values used last, at most `max_entries`."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._values: OrderedDict[str, _V] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Iterable[str]) -> dict[str, _V]:
        with self._lock:
            found = {key: self._values[key] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
        return found

    def keep(self, values: Mapping[str, _V]) -> None:
        with self._lock:
            self._values.update(values)
            while len(self._values) > self._max_entries:
                self._values.popitem(last=False)
