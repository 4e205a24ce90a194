"""The generator as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray

from serving.client import ActorGenerator
from serving.config import ServingConfig
from serving.environment import engine_environment
from serving.errors import ServingError
from serving.generator import LocalGenerator
from serving.health import GeneratorHealth
from serving.routing.kv_report import KVReport
from serving.sessions import Delivery, Sessions
from serving.spans import TraceContext
from serving.types import AdapterInfo, GenerateRequest, GeneratorInfo, GeneratorStats, Prompt

logger = logging.getLogger(__name__)

MAX_CONCURRENCY = 2048
"""Calls the actor holds at once; above every queue limit, so that refusals come from the generator."""
WATCH_INTERVAL_S = 1.0
"""How often the actor looks whether its engine and its clients still live."""


Setup = Callable[[], Callable[[], None]]
"""Prepares a process, such as the export of its spans, and returns what is to be called before it ends."""


@dataclass(frozen=True, slots=True)
class ActorReady:
    """What a generator actor says once it can answer."""

    pid: int
    """Its process."""
    import_s: float
    """Seconds spent importing torch and vllm."""
    engine_s: float
    """Seconds spent reading weights and laying out the KV cache."""


class GeneratorActor:
    """Serves a `LocalGenerator` to other processes; `start_generator` makes one.

    A dead engine cannot be revived within its process, so the actor exits and Ray starts it anew.
    """

    def __init__(self, config: ServingConfig, setup: Setup | None = None) -> None:
        self._at_end = setup() if setup is not None else None
        self._generator = LocalGenerator(config)
        self._sessions = Sessions(self._generator)
        self._watch: asyncio.Task[None] | None = None
        # After a restart nobody calls `ready`: the engine loads while callers still learn of the death.
        self._beginning = asyncio.create_task(self._begin())

    async def _begin(self) -> None:
        with suppress(ServingError):  # `ready` and `health` tell it to whoever asks
            await self.ready()

    async def ready(self) -> ActorReady:
        """Start the engine unless it runs; returns where the time went."""
        timings = await self._generator.start()
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_over())
        return ActorReady(os.getpid(), timings.import_s, timings.engine_s)

    async def _watch_over(self) -> None:
        """Close sessions of clients that are gone; leave the process once the engine is dead."""
        while (health := self._generator.health()).status != "failed":
            self._sessions.close_silent()
            await asyncio.sleep(WATCH_INTERVAL_S)
        logger.error("leaving for a restart: %s", health.detail)
        await asyncio.sleep(WATCH_INTERVAL_S)  # callers get their errors first
        os._exit(1)

    async def open_session(self) -> str:
        """Return the id of a new session, once the engine can answer."""
        await self.ready()
        return self._sessions.open()

    async def submit(
        self, session_id: str, requests: dict[int, tuple[GenerateRequest, TraceContext]]
    ) -> None:
        """Begin requests, by the numbers that the client gave them; see `Sessions.submit`."""
        for number, (request, asking) in requests.items():
            self._sessions.submit(session_id, number, request, asking)

    async def poll(self, session_id: str) -> list[Delivery]:
        """Return what a session's requests have produced; see `Sessions.poll`."""
        return await self._sessions.poll(session_id)

    async def cancel(self, session_id: str, numbers: list[int]) -> None:
        """Cancel requests in the engine."""
        for number in numbers:
            self._sessions.cancel(session_id, number)

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the prompt encodes to."""
        await self.ready()
        return await self._generator.count_tokens(prompt)

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter from a folder of this node."""
        await self.ready()
        return await self._generator.load_adapter(name, folder)

    async def unload_adapter(self, adapter_id: str) -> None:
        """Remove an adapter once the requests that use it have ended."""
        await self._generator.unload_adapter(adapter_id)

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that are loaded, oldest first."""
        await self.ready()
        return await self._generator.adapters()

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        """Serve other weights of the same model from now on, from a folder of this node."""
        await self.ready()
        return await self._generator.update_weights(folder)

    async def info(self) -> GeneratorInfo:
        """Return what this generator is."""
        await self.ready()
        return await self._generator.info()

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals since start."""
        return await self._generator.stats()

    async def kv_report(self, life: str, since: int) -> KVReport:
        """Return what KV there is to reuse; see `LocalGenerator.kv_report`."""
        await self.ready()
        return await self._generator.kv_report(life, since)

    async def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return await self._generator.metrics_text()

    async def health(self) -> GeneratorHealth:
        """Return whether it can answer."""
        return self._generator.health()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Take no new request, fail what is under way after `drain_s`, and free the model."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._generator.drain()
                await self._sessions.told()
        if self._watch is not None:
            self._watch.cancel()
        await self._generator.stop()
        if self._at_end is not None:
            await asyncio.to_thread(self._at_end)


def start_generator(
    config: ServingConfig,
    *,
    name: str | None = None,
    namespace: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    resources: dict[str, float] | None = None,
    setup: Setup | None = None,
) -> ActorGenerator:
    """Create a generator actor and return its client at once; `await client.ready()` for the engine.

    Args:
        config: Settings of the generator.
        name: Name to find the actor by; None for an anonymous one that ends with its creator.
        namespace: Ray namespace of the name.
        num_cpus: Logical cores to reserve; does not set the number of threads (`config.num_threads`).
        num_gpus: GPUs to reserve; 0 hides all GPUs from the actor.
        resources: Custom resources to reserve, such as a node's label.
        setup: Called in the actor's process, before anything else there.
    """
    actor = (
        ray.remote(GeneratorActor)
        .options(
            name=name,
            namespace=namespace,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=MAX_CONCURRENCY,
            runtime_env={"env_vars": engine_environment(config)},
        )
        .remote(config, setup)
    )
    return ActorGenerator(cast(Any, actor))
