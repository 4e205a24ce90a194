"""Vectors of queries seen lately, least recently used dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class QueryCache:
    """A bounded map from query text to vector; safe to use from several tasks and threads."""

    def __init__(self, max_entries: int) -> None:
        """Start empty; 0 entries keeps nothing."""
        self._max_entries = max_entries
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    async def vectors(
        self, texts: Sequence[str], embed: Callable[[list[str]], Awaitable[np.ndarray]]
    ) -> np.ndarray:
        """Return float32[len(texts), dim]; `embed` is called once, with the distinct texts not kept."""
        import numpy as np

        with self._lock:
            known = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in known:
                self._vectors.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing or not texts:
            fresh_ND = await embed(missing)
            if not texts:
                return fresh_ND
            # Copies: a row alone must not keep the whole batch in memory.
            fresh = {text: vector_D.copy() for text, vector_D in zip(missing, fresh_ND, strict=True)}
            known.update(fresh)
            self._keep(fresh)
        return np.stack([known[text] for text in texts])

    def _keep(self, fresh: dict[str, np.ndarray]) -> None:
        with self._lock:
            self._vectors.update(fresh)
            while len(self._vectors) > self._max_entries:
                self._vectors.popitem(last=False)
