"""Computes chunks' KV while the engine has nothing else to do."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from serving.chunk_kv.blend_plan import BlendPlan, ChunkSpan
from serving.driver import Driver, EngineRequest
from serving.errors import ServingError
from serving.types import Sampling

logger = logging.getLogger(__name__)

MAX_PRIORITY = 1_000_000
"""The last of all requests."""
MAX_WAITING = 1024
"""Chunks that may wait; one more displaces the one that waited longest."""
IDLE_LOOK_S = 0.02
"""How often a busy engine is looked at again."""


@dataclass(frozen=True, slots=True)
class WantedChunk:
    """A chunk whose KV is to be computed."""

    token_ids: list[int]
    """Its context and the chunk."""
    span: ChunkSpan
    """Where the chunk is among them."""
    cache_salt: str
    """Of exact requests of the same tenant: the context's KV is shared with them."""


class ChunkWarmer:
    """Sends one chunk at a time to an idle engine; made and used on one event loop.

    Args:
        driver: Of an engine that keeps chunks.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: OrderedDict[str, WantedChunk] = OrderedDict()
        self._running: asyncio.Task[None] | None = None
        self.num_computed = 0
        """Chunks computed so far."""

    def want(self, chunks: Iterable[WantedChunk]) -> None:
        """Queue chunks that are not queued yet."""
        for chunk in chunks:
            self._waiting.setdefault(chunk.span.key, chunk)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
        if self._waiting and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Wait until nothing is left to compute."""
        if self._running is not None:
            await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Forget what waits; a chunk under way is aborted."""
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            load = self._driver.load()
            if load.num_running or load.num_waiting:
                await asyncio.sleep(IDLE_LOOK_S)
                continue
            _, chunk = self._waiting.popitem(last=False)
            try:
                await self._compute(chunk)
                self.num_computed += 1
            except ServingError as error:
                logger.warning("a chunk's KV was not computed: %s", error)

    async def _compute(self, chunk: WantedChunk) -> None:
        stream = self._driver.submit(
            EngineRequest(
                request_id=uuid.uuid4().hex,
                token_ids=chunk.token_ids,
                sampling=Sampling(max_tokens=1),
                cache_salt=chunk.cache_salt,
                priority=MAX_PRIORITY,
                blend=BlendPlan(capture=(chunk.span,)),
            )
        )
        ended = False
        try:
            while not ended:
                ended = (await stream.next()).finish_reason is not None
        finally:
            if not ended:
                self._driver.abort(stream.request_id)
