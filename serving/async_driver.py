"""vLLM's own engine processes behind `AsyncLLM`: the driver for GPUs."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import ServingConfig
from serving.driver import (
    NO_CHUNK_KV,
    EngineAdapter,
    EngineLoad,
    EngineRequest,
    OutputStream,
    StartTimings,
)
from serving.engine_arguments import engine_arguments
from serving.errors import GeneratorUnavailable, InvalidAdapter, InvalidGeneration, ModelUnusable

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)


class AsyncDriver:
    """Drives vLLM's `AsyncLLM`; everything happens on the event loop that called `start`.

    Args:
        config: Settings of the engine.
        folder: The model's folder.
        on_gpu: False runs the engine processes on the CPU, which the driver's own tests do.
        kv_events: Where the engine is to publish the changes of its prefix cache; None for nowhere.
    """

    def __init__(
        self, config: ServingConfig, folder: str, *, on_gpu: bool = True, kv_events: str | None = None
    ) -> None:
        self._config = config
        self._folder = folder
        self._on_gpu = on_gpu
        self._kv_events = kv_events
        self._engine: AsyncLLM | None = None
        self._starting: asyncio.Task[StartTimings] | None = None
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._failure: str | None = None
        self._no_blend_reason: str | None = "the engine has not started"

    @property
    def failure(self) -> str | None:
        """Return why the engine died, or None while it lives."""
        return self._failure

    async def start(self) -> StartTimings:
        """Load the model and begin to serve; a second call returns the first call's timings.

        Raises:
            ModelUnusable: The engine refused the model; the message says why.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> StartTimings:
        os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # AsyncLLM refuses "0"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_bytes
        begun = time.monotonic()
        await asyncio.to_thread(_import_engine)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from serving.vllm_values import STRUCTURED_OUTPUTS

        imported = time.monotonic()
        arguments = engine_arguments(
            self._config, self._folder, on_gpu=self._on_gpu, kv_events=self._kv_events
        )
        arguments["structured_outputs_config"] = STRUCTURED_OUTPUTS
        try:
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:
            self._failure = f"The engine could not load {self._config.model!r}: {error}"
            raise ModelUnusable(self._failure) from error
        self._no_blend_reason = NO_CHUNK_KV
        if self._config.chunk_kv_bytes:
            # Not tried on a GPU yet; a worker in a process of its own never gets a promise to keep.
            self._no_blend_reason = (await self._engine.collective_rpc("attach_chunk_kv"))[0]
        return StartTimings(imported - begun, time.monotonic() - imported)

    @property
    def no_blend_reason(self) -> str | None:
        """Return why requests are served exactly, or None where chunks can be blended."""
        return self._no_blend_reason

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens of KV the engine can hold; 0 before it has started."""
        if self._engine is None:
            return 0
        from serving.vllm_values import kv_tokens

        return kv_tokens(self._engine.vllm_config)

    async def load_adapter(self, adapter: EngineAdapter) -> None:
        """Load a LoRA adapter; see `Driver.load_adapter`.

        Raises:
            InvalidAdapter: The engine refused it; the message says why.
            GeneratorUnavailable: The engine died or is stopping.
        """
        if self._engine is None or self._failure is not None:
            raise GeneratorUnavailable(self._failure or "The engine is not running.")
        from serving.vllm_values import lora_request

        try:
            await self._engine.add_lora(lora_request(adapter))
        except Exception as error:
            with suppress(Exception):
                await self._engine.remove_lora(adapter.number)
            raise InvalidAdapter(f"vLLM cannot use {adapter.name}: {error}") from error

    async def unload_adapter(self, adapter: EngineAdapter) -> None:
        """Remove an adapter that no request uses; does nothing where the engine is gone."""
        if self._engine is not None and self._failure is None:
            await self._engine.remove_lora(adapter.number)

    async def update_weights(self, folder: str) -> None:
        """Put other weights in the place of the model's; see `Driver.update_weights`.

        Raises:
            ModelUnusable: The engine could not; its weights are then undefined.
            GeneratorUnavailable: The engine died or is stopping.
        """
        if self._engine is None or self._failure is not None:
            raise GeneratorUnavailable(self._failure or "The engine is not running.")
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        except Exception as error:
            raise ModelUnusable(f"vLLM cannot load the weights in '{folder}': {error}") from error
        if not await self._engine.reset_prefix_cache():
            raise ModelUnusable("vLLM kept KV of the weights before; a request is under way")

    async def store_stats(self) -> StoreStats | None:
        """Return what the chunk store holds and did; None where there is none, or the engine is gone."""
        if self._engine is None or self._failure is not None or not self._config.chunk_kv_bytes:
            return None
        return (await self._engine.collective_rpc("chunk_kv_stats"))[0]

    async def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where the chunk store has each of these chunks; None where it has not."""
        if self._engine is None or self._failure is not None or not self._config.chunk_kv_bytes:
            return [None] * len(keys)
        return (await self._engine.collective_rpc("chunk_kv_tiers", args=(list(keys),)))[0]

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs.

        Raises:
            GeneratorUnavailable: The engine died or is stopping.
        """
        if self._failure is not None:
            raise GeneratorUnavailable(self._failure)
        if self._engine is None:
            raise GeneratorUnavailable("The engine is not running; start it, or wait until it has restarted.")
        stream = OutputStream(request.request_id, asyncio.get_running_loop())
        pump = asyncio.create_task(self._pump(self._engine, request, stream))
        self._pumps[request.request_id] = pump
        pump.add_done_callback(lambda _: self._pumps.pop(request.request_id, None))
        return stream

    async def _pump(self, engine: AsyncLLM, request: EngineRequest, stream: OutputStream) -> None:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        from serving import vllm_values

        try:
            outputs = engine.generate(
                vllm_values.engine_prompt(request),
                vllm_values.sampling_params(request),
                request.request_id,
                priority=request.priority,
                lora_request=vllm_values.lora_request(request.adapter),
            )
            async for output in outputs:
                stream.put(vllm_values.engine_output(output))
        except (VLLMClientError, ValueError) as error:
            stream.fail(InvalidGeneration(f"The engine refused the request: {error}"))
        except asyncio.CancelledError:
            stream.fail(
                GeneratorUnavailable("The engine is stopping; send the request again once it is back.")
            )
            raise
        except (EngineDeadError, EngineGenerateError) as error:
            if self._failure is None:
                logger.exception("the engine died")
            self._failure = f"The engine died ({error}); it answers again after a restart."
            stream.fail(GeneratorUnavailable(self._failure))

    def abort(self, request_id: str) -> None:
        """Stop a request; unknown ids are ignored."""
        if self._engine is not None and request_id in self._pumps:
            # Its pump delivers the last piece, which vLLM ends with "abort".
            task = asyncio.create_task(self._engine.abort(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def load(self) -> EngineLoad:
        """Return what the engine is working on.

        The engine's processes report no counts while idle; at most `max_num_seqs` of the requests
        under way hold blocks, and the others wait.
        """
        unfinished = self._engine.get_num_unfinished_requests() if self._engine is not None else 0
        num_running = min(unfinished, self._config.max_num_seqs)
        return EngineLoad(num_running, unfinished - num_running)

    async def stop(self) -> None:
        """Fail what is under way and free the model; safe to call twice."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        pumps = list(self._pumps.values())
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, *self._aborts, return_exceptions=True)
        await asyncio.to_thread(engine.shutdown)


def _import_engine() -> None:
    """Import vLLM off the event loop, which would stand still for ten seconds."""
    import vllm.v1.engine.async_llm  # noqa: F401
