"""The generator: prompts in, streamed text out, over one engine driver in this process."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path

from serving.chunk_kv.blending import Blending
from serving.chunk_kv.quality_gate import QualityGate
from serving.config import ServingConfig
from serving.deadline_reader import DeadlineReader
from serving.driver import (
    Driver,
    EngineLoad,
    StartTimings,
    choose_driver,
)
from serving.engine_requests import EngineRequests, tenant_salt, with_chunks
from serving.errors import (
    GeneratorUnavailable,
    InvalidGeneration,
    Overloaded,
)
from serving.fair_queue import FairQueue
from serving.health import GeneratorHealth
from serving.holding import Holding
from serving.metrics import GeneratorMetrics
from serving.prompt_reader import PromptReader
from serving.request_limits import check_request
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.kv_reporter import KVReporter
from serving.served_model import ServedModel
from serving.spans import GenerationSpan
from serving.tokenizer import ModelTokenizer
from serving.types import (
    AdapterInfo,
    FinishReason,
    GeneratedChunk,
    GenerateRequest,
    GeneratorInfo,
    GeneratorStats,
    Prompt,
    TokenUsage,
)
from serving.weights import model_folder, model_hash, tokenizer_hash

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (0.5, 60.0)
"""Bounds of `Overloaded.retry_after_s`."""


class LocalGenerator:
    """Implements `Generator` over a driver in this process.

    Args:
        config: Settings.
        driver: The engine; None chooses by looking at the machine.
    """

    def __init__(self, config: ServingConfig, driver: Driver | None = None) -> None:
        self.config = config
        self._driver = driver
        self._metrics = GeneratorMetrics()
        self._active: set[str] = set()
        self._ended = asyncio.Event()
        """Set whenever a request ends."""
        self._is_draining = False
        self._queue = FairQueue(
            config.max_num_seqs,
            config.max_queued_requests,
            config.tenant_weights,
            num_reserved=config.num_reserved_seqs,
            fair=config.scheduling == "fair",
        )
        self._starting: asyncio.Task[StartTimings] | None = None
        self._requests: EngineRequests | None = None
        self._model: ServedModel | None = None
        self._reader: PromptReader | None = None
        self._blending: Blending | None = None
        self._reporter: KVReporter | None = None
        self._stopped = False

    async def start(self) -> StartTimings:
        """Load tokenizer and engine; returns where the time went. A second call waits for the first.

        Raises:
            ModelUnusable: The model cannot be served; the message says why.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> StartTimings:
        folder = await asyncio.to_thread(model_folder, self.config.model)
        kv_events = None
        if self.config.num_replicas > 1:
            self._reporter = KVReporter(self.config.block_size)
            kv_events = self._reporter.events.endpoint
        if self._driver is None:
            self._driver = await asyncio.to_thread(choose_driver, self.config, str(folder), kv_events)
        tokenizer = ModelTokenizer(folder / "tokenizer.json")
        timings, weights = await asyncio.gather(self._driver.start(), asyncio.to_thread(model_hash, folder))
        info = GeneratorInfo(
            model_id=self.config.model,
            model_hash=weights,
            tokenizer_hash=tokenizer_hash(folder),
            max_model_len=self.config.max_model_len,
        )
        self._model = ServedModel(self.config, folder, info, self._driver, self._queue, self._forget)
        self._reader = PromptReader(tokenizer, self.config.max_model_len, self._driver.kv_tokens)
        self._requests = EngineRequests(self.config, tokenizer.end_ids)
        if self._driver.no_blend_reason is None:
            gate = QualityGate(self.config.blend_gate)
            self._blending = Blending(self._driver, gate, tokenizer.decode, self._metrics.checked)
        return timings

    async def drain(self) -> None:
        """Take no new request, and return once those accepted have ended; nothing takes that back."""
        self._is_draining = True
        while self._active:
            self._ended.clear()
            await self._ended.wait()

    async def stop(self) -> None:
        """Fail what is under way and free the model; safe to call twice."""
        self._stopped = True
        self._queue.close(GeneratorUnavailable("The generator is stopping; send the request again."))
        if self._blending is not None:
            await self._blending.stop()
        if self._driver is not None:
            await self._driver.stop()
        if self._reporter is not None:
            await asyncio.to_thread(self._reporter.close)
        if self._model is not None:
            await asyncio.to_thread(self._model.adapters.close)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """Stream the output of one request; see `Generator.generate`.

        Raises:
            PromptTooLong: The prompt leaves no room for one token.
            InvalidGeneration: The request id is in use, the prompt is empty, or the engine refuses a value.
            Overloaded: The waiting queue is full; the caller should retry after `retry_after_s`.
            GeneratorUnavailable: The engine died, or is draining or stopping.
        """
        accepted_s = first_s = time.monotonic()
        driver = self._ready_driver()
        if self._is_draining:
            raise GeneratorUnavailable(
                "The generator is draining: it ends what it has accepted and takes no new requests; "
                "send this one to another, or again once it has restarted."
            )
        check_request(request)
        self._check_room(request.tenant)
        adapter = self._ready_model().adapters.acquire(request.adapter) if request.adapter else None
        try:
            request_id = self._claim(request.request_id)
        except InvalidGeneration:
            self._release(request.adapter)
            raise
        ticket = self._queue.admit(request.tenant, request.priority, request.run_began_s)
        span = GenerationSpan(request, self.config.model)
        written_by: str | None = None
        holding = Holding(self._queue, ticket, partial(self._release, request.adapter))
        reason: FinishReason | None = None
        usage = TokenUsage()
        reader: DeadlineReader | None = None
        try:
            deadline_s = request.deadline_s or self.config.default_deadline_s
            deadline_at = deadline_s and asyncio.get_running_loop().time() + deadline_s
            read = await self._ready_reader().read(request)
            usage = TokenUsage(prompt_tokens=len(read.token_ids), reordered=read.reordered)
            try:
                async with asyncio.timeout_at(deadline_at):
                    await self._queue.enter(ticket, usage.prompt_tokens)
            except TimeoutError:
                reason = "deadline"
                holding.end()
                yield GeneratedChunk("", (), reason, usage, read.chunk_order)
                return
            queued_s = time.monotonic() - accepted_s
            self._metrics.entered(queued_s)
            span.entered(queued_s)
            if self._blending is not None:
                self._blending.make_way()
            model = self._ready_model()
            written_by = model.weights(adapter)
            assert self._requests is not None
            blends = self.no_blend_reason is None
            engine_request, chunks = self._requests.make(request, read, model.info, adapter, blends=blends)
            stream = driver.submit(engine_request)
            holding.watch(stream)
            reader = DeadlineReader(driver, stream, deadline_at)
            while reason is None:
                output = await reader.next()
                if output.finish_reason == "error":
                    raise _unserved(request)
                if output.token_ids and not usage.completion_tokens:
                    first_s = time.monotonic()
                    self._metrics.first_token(first_s - accepted_s)
                    span.first_token(first_s - accepted_s)
                usage = replace(
                    usage,
                    cached_tokens=max(usage.cached_tokens, output.num_cached_tokens),
                    completion_tokens=usage.completion_tokens + len(output.token_ids),
                )
                if output.finish_reason is None:
                    yield GeneratedChunk(output.text, output.token_ids)
                    continue
                if chunks is not None and output.chunk_use is not None:
                    usage = with_chunks(usage, output.chunk_use)
                    assert self._blending is not None
                    # A slow reader may outlast the weights its request was answered with.
                    if model.weights(adapter) == written_by:
                        salt = tenant_salt(request.tenant)
                        self._blending.after(engine_request, chunks, output.chunk_use, salt)
                if self._reporter is not None:
                    self._reporter.served(request, read, engine_request, chunks)
                reason = reader.finish_reason(output)
                self._metrics.paced(time.monotonic() - first_s, usage.completion_tokens)
                yield GeneratedChunk(
                    output.text, output.token_ids, reason, usage, read.chunk_order, written_by
                )
        except (asyncio.CancelledError, GeneratorExit):
            reason = reason or "cancelled"
            raise
        finally:
            self._active.discard(request_id)
            self._ended.set()
            # In this order: an adapter goes, and weights change, after the engine has let go of the request.
            if reader is not None:
                reader.close()
            holding.end()
            span.ended(reason, usage, written_by)
            if usage.prompt_tokens:
                self._metrics.ended(reason, usage, time.monotonic() - accepted_s)

    def _ready_driver(self) -> Driver:
        if self._stopped:
            raise GeneratorUnavailable("The generator has been stopped; start another one.")
        if self._driver is None or self._model is None:
            raise GeneratorUnavailable("The generator has not started; await `start()` first.")
        if self._model.failure is not None:
            raise GeneratorUnavailable(self._model.failure)
        return self._driver

    def _ready_model(self) -> ServedModel:
        self._ready_driver()
        assert self._model is not None
        return self._model

    def _ready_reader(self) -> PromptReader:
        self._ready_driver()
        assert self._reader is not None
        return self._reader

    def _release(self, adapter_id: str | None) -> None:
        if adapter_id is not None and self._model is not None:
            self._model.adapters.release(adapter_id)

    def _check_room(self, tenant: str) -> None:
        refusal = self._queue.refusal(tenant)
        if refusal is None:
            return
        self._metrics.rejected()
        rounds = (max(self._queue.num_beyond_slots, 0) + 1) / self.config.max_num_seqs
        low, high = RETRY_AFTER_S
        retry_after_s = min(max(rounds * self._metrics.mean_duration_s, low), high)
        raise Overloaded(
            f"{refusal} (serving.max_queued_requests); retry in {retry_after_s:.1f} s or add a generator "
            "replica.",
            retry_after_s,
        )

    def _claim(self, request_id: str) -> str:
        if request_id in self._active:
            raise InvalidGeneration(
                f"Request id {request_id!r} is under way already; use another or leave it empty."
            )
        request_id = request_id or uuid.uuid4().hex
        self._active.add(request_id)
        return request_id

    @property
    def no_blend_reason(self) -> str | None:
        """Return why requests are served exactly, or None where chunks are blended."""
        if self._blending is not None:
            return self._blending.off_reason
        return "the generator has not started" if self._driver is None else self._driver.no_blend_reason

    async def idle_work_done(self) -> None:
        """Wait until chunks asked for so far are computed and answers drawn for it are checked."""
        if self._blending is not None:
            await self._blending.wait()

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter; see `Adapters.load`.

        Raises:
            InvalidAdapter: The name, the files or their rank are not usable, or as many are loaded as may be.
            GeneratorUnavailable: The engine died or is stopping.
        """
        return await self._ready_model().adapters.load(name, folder)

    async def unload_adapter(self, adapter_id: str) -> None:
        """Remove an adapter once the requests that use it have ended; new ones are refused at once.

        Raises:
            UnknownAdapter: It is not loaded, or is being unloaded already.
        """
        await self._ready_model().adapters.unload(adapter_id)

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that are loaded, oldest first."""
        return self._ready_model().adapters.infos()

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        """Serve other weights of the same model from now on; returns what the generator is then.

        Requests under way end with the weights they began with; those that wait go on with the new ones.
        KV of the old weights is not used again, in no tier. After a restart the configured model is served.

        Args:
            folder: A model folder, on the generator's machine, of the same tokenizer, settings and shapes.

        Raises:
            ModelUnusable: The folder is not; or its weights could not be loaded, and the old ones serve on.
            InvalidAdapter: Adapters are loaded, which were made for the weights there are.
            GeneratorUnavailable: The engine died or is stopping, or is left without weights.
        """
        return await self._ready_model().update(folder)

    async def _forget(self) -> None:
        if self._blending is not None:
            await self._blending.stop()
        self._ready_reader().forget()

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the prompt encodes to."""
        return sum(map(len, await self._ready_reader().encode(prompt)))

    async def info(self) -> GeneratorInfo:
        """Return what this generator is."""
        return self._ready_model().info

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals since start."""
        return replace(self._metrics.stats(self._load()), no_blend_reason=self.no_blend_reason)

    async def kv_report(self, life: str, since: int) -> KVReport:
        """Return what KV there is to reuse, for whom routes requests over several generators.

        A generator that is alone (`serving.num_replicas` is 1) does not know, and tells of its load only.

        Args:
            life: An earlier report's, or "" for all there is.
            since: That report's version.
        """
        driver = self._ready_driver()
        adapters = tuple(info.adapter_id for info in await self.adapters() if not info.is_leaving)
        load = self._load()
        state = ReplicaState(load.num_running, load.num_waiting, adapters, self.no_blend_reason is None)
        if self._reporter is None:
            return KVReport(life="", version=0, is_full=True, state=state)
        return await self._reporter.report(driver, life, since, state)

    async def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        self._metrics.fairness_gap(self._queue.gap_tokens)
        if self._driver is not None:
            self._metrics.stored(await self._driver.store_stats())
        return self._metrics.prometheus_text(self._load())

    def _load(self) -> EngineLoad:
        load = self._driver.load() if self._driver is not None else EngineLoad()
        return replace(load, num_waiting=load.num_waiting + self._queue.num_waiting)

    def health(self) -> GeneratorHealth:
        """Return whether it can answer."""
        failure = self._driver.failure if self._driver is not None else None
        if self._model is not None:
            failure = failure or self._model.failure
        started = self._starting
        if failure is None and started is not None and started.done() and not started.cancelled():
            error = started.exception()
            failure = str(error) if error is not None else None
        if failure is not None:
            return GeneratorHealth("failed", failure)
        if self._stopped:
            return GeneratorHealth("stopped")
        if self._is_draining:
            return GeneratorHealth("draining")
        return GeneratorHealth("ready" if self._model is not None else "starting")


def _unserved(request: GenerateRequest) -> InvalidGeneration | GeneratorUnavailable:
    """Return the error for a request that the engine took and gave up."""
    if request.sampling.constraint is not None:
        return InvalidGeneration("The engine cannot work with the request's constraint; simplify it.")
    return GeneratorUnavailable(
        "The engine gave up the request; send it again, and see the log if it recurs."
    )
