"""A replica's side of routing: it follows its engine and tells routers what KV it holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from serving.chunk_kv.prompt_chunks import PromptChunks
from serving.driver import Driver, EngineRequest
from serving.prompt_reader import ReadPrompt
from serving.routing.kv_events import KVEvents
from serving.routing.kv_inventory import KVInventory
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.prompt_path import prompt_path
from serving.types import GenerateRequest


class KVReporter:
    """Keeps the inventory of one engine.

    Args:
        block_size: Tokens of the engine's blocks.
    """

    def __init__(self, block_size: int) -> None:
        self.events = KVEvents()
        """Where the engine is to publish; made before it is."""
        self._inventory = KVInventory(block_size)
        self._reporting = asyncio.Lock()

    def served(
        self,
        request: GenerateRequest,
        read: ReadPrompt,
        engine_request: EngineRequest,
        chunks: PromptChunks | None,
    ) -> None:
        """Remember a prompt that the engine has computed.

        Args:
            request: What was asked.
            read: How it was read.
            engine_request: What the engine was asked for it.
            chunks: What it took from the chunk store; None where it was served exactly.
        """
        path = prompt_path(replace(request, prompt=read.prompt), is_blended=chunks is not None)
        adapter = engine_request.adapter
        apart = (*(() if adapter is None else (adapter.name,)), engine_request.cache_salt)
        self._inventory.served(path, [len(ids) for ids in read.segment_ids], read.token_ids, apart)
        if chunks is not None:
            self._inventory.has_chunks(path.chunks, [span.key for span in chunks.spans])
        if self._inventory.is_behind:
            self._inventory.follow(self.events.take(), {})

    async def report(self, driver: Driver, life: str, since: int, state: ReplicaState) -> KVReport:
        """Return what has changed since an earlier report; see `KVInventory.report`."""
        async with self._reporting:
            keys = self._inventory.chunk_keys()
            found = await driver.chunk_tiers(list(keys.values())) if keys else []
            tiers = dict(zip(keys, found, strict=True))
            self._inventory.follow(self.events.take(), tiers)
        return self._inventory.report(life, since, state)

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self.events.close()
