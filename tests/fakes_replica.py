"""The scripted generator as one of several: it dies where it is told to and tells of its load, not of KV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from fakes_serving import ScriptedGenerator

from serving.errors import GeneratorUnavailable, InvalidAdapter, UnknownAdapter
from serving.health import GeneratorHealth
from serving.routing.kv_report import KVReport, ReplicaState
from serving.types import AdapterInfo, GeneratedChunk, GenerateRequest, GeneratorInfo


class ScriptedReplica(ScriptedGenerator):
    """A `Replica` over a script."""

    def __init__(self, script: str, **settings: object) -> None:
        super().__init__(script, **settings)  # type: ignore[arg-type]
        self.dies_after: int | None = None
        """Characters after which the next request fails, and the replica is down."""
        self.is_down = False
        self.is_stopped = False
        self.is_draining = False
        self.loaded: dict[str, AdapterInfo] = {}
        self.takes_adapters = True
        self.weights: list[Path] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        self._answer()
        if self.is_draining:
            raise GeneratorUnavailable("the replica is draining")
        async with aclosing(super().generate(request)) as chunks:
            num_written = 0
            async for chunk in chunks:
                if num_written == self.dies_after:
                    self.is_down = True
                    raise GeneratorUnavailable("the replica died")
                yield chunk
                num_written += 1

    def _answer(self) -> None:
        if self.is_down or self.is_stopped:
            raise GeneratorUnavailable("the replica is down")

    async def kv_report(self, life: str, since: int) -> KVReport:
        self._answer()
        stats = await self.stats()
        return KVReport(
            "", 0, True, state=ReplicaState(stats.num_running, stats.num_waiting, tuple(self.loaded))
        )

    async def health(self) -> GeneratorHealth:
        return GeneratorHealth("failed" if self.is_down else "ready")

    async def metrics_text(self) -> str:
        self._answer()
        return f"# HELP graft_x What.\n# TYPE graft_x counter\ngraft_x_total {len(self.requests)}\n"

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        if not self.takes_adapters:
            raise InvalidAdapter("no room")
        return self.loaded.setdefault(f"{name}@1", AdapterInfo(f"{name}@1", name, 8, 1, is_leaving=False))

    async def unload_adapter(self, adapter_id: str) -> None:
        if adapter_id not in self.loaded:
            raise UnknownAdapter(adapter_id)
        del self.loaded[adapter_id]

    async def adapters(self) -> list[AdapterInfo]:
        return list(self.loaded.values())

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        self.weights.append(folder)
        return await self.info()

    async def stop(self, drain_s: float = 0.0) -> None:
        self.is_draining = True
        async with asyncio.timeout(drain_s):
            while (await self.stats()).num_running:  # noqa: ASYNC110 - a fake's work is short
                await asyncio.sleep(0.001)
        self.is_stopped = True
