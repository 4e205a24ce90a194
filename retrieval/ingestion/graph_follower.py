"""Keeping the active version's graph up with its chunks, beside everything else that changes them.

The shard's file says what waits: a trigger queues every new chunk in the transaction that stores it, whether
an upload, a record, a reshard or another primary's log brought it. So the follower asks the file instead of
being told, and after a crash or a switch of versions goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable

from retrieval.config import RetrievalConfig
from retrieval.errors import RetrievalUnavailable
from retrieval.graph import GraphIndex, LlmExtractor, RuleExtractor
from retrieval.graph.schema import drop_graph, pause_graph
from retrieval.graph.types import Extractor, TextModel
from retrieval.truth.store import Store

_log = logging.getLogger(__name__)

_POLL_S = 0.25
"""How long a new chunk may wait before it is noticed."""
_RETRY_S = 2.0
"""Pause after the language model or the disk could not serve; the chunks wait meanwhile."""
_BATCH_CHUNKS = 16
"""Chunks taken up at a time: few, as a crash loses the work on them and a search may wait for it."""


def extractor_of(config: RetrievalConfig, text_model: TextModel | None) -> Extractor | None:
    """Return what finds entities by the configuration; None where no graph is kept.

    Raises:
        ValueError: A language model is wanted and none is given.
    """
    if config.graph == "none":
        return None
    if config.graph == "rules":
        return RuleExtractor()
    if text_model is None:
        raise ValueError(
            "graph is 'llm', but no language model was given: pass `text_model`, or set graph to 'rules', "
            "which needs none"
        )
    return LlmExtractor(text_model)


class GraphFollower:
    """Takes up the chunks of whichever version is active; belongs to one event loop."""

    def __init__(self, store: Store, extractor: Extractor | None) -> None:
        """Prepare; `start` begins.

        Args:
            store: The shard's truth.
            extractor: Finds entities; None to keep no graph.
        """
        self._store = store
        self._extractor = extractor
        self._indexes: dict[int, GraphIndex] = {}
        self._number: int | None = None
        self._opening = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_on(self) -> bool:
        """Return whether a graph is kept."""
        return self._extractor is not None

    async def start(self) -> None:
        """Begin to follow on the running event loop; without an extractor, see that nothing does."""
        if self._extractor is None:
            await asyncio.to_thread(self._for_all, pause_graph, None)
        elif self._task is None:
            self._task = asyncio.create_task(self._run(), name="follow-graph")

    async def aclose(self) -> None:
        """Stop; what waits is taken up when the shard is opened next."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def index(self, number: int) -> GraphIndex:
        """Return the graph of a version, begun if there is none yet.

        Raises:
            ValueError: No graph is kept.
        """
        if self._extractor is None:
            raise ValueError("no graph is kept")
        async with self._opening:
            if number not in self._indexes:
                index = GraphIndex(self._store.database, number, self._extractor)
                await index.open()
                self._indexes[number] = index
        return self._indexes[number]

    async def drop(self) -> None:
        """Remove what an earlier configuration kept; only while no graph is kept."""
        await asyncio.to_thread(self._for_all, drop_graph, None)

    async def _run(self) -> None:
        cause = ""
        while True:
            try:
                worked = await self._step()
                cause = ""
            except RetrievalUnavailable as error:
                if cause != str(error):
                    _log.warning("the graph waits: %s", error)
                cause = str(error)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                # The run boundary: one bug must not end the graph for good.
                _log.exception("chunks could not be taken up into the graph")
                await asyncio.sleep(_RETRY_S)
            else:
                await asyncio.sleep(0 if worked else _POLL_S)

    async def _step(self) -> bool:
        """Take up a batch of what the active version's chunks say; False when none waits."""
        number = (await asyncio.to_thread(self._store.version)).number
        if number != self._number:
            # One that was active before follows deletions only; should it answer again, it catches up.
            await asyncio.to_thread(self._for_all, pause_graph, number)
            self._indexes.clear()
            await self.index(number)
            self._number = number
        return await (await self.index(number)).follow(_BATCH_CHUNKS) > 0

    def _for_all(self, change: Callable[[sqlite3.Connection, int], None], but: int | None) -> None:
        """Apply a change to the graph of every version but one."""
        numbers = [version.number for version in self._store.stored_versions()]
        with self._store.database.write(durable=False) as db:
            for number in numbers:
                if number != but:
                    change(db, number)
