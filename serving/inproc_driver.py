"""The engine inside this process, driven by one thread: the driver for CPUs.

In a Ray actor this is ready in 13-17 s with 2.0 GB, against 37 s and 3.6 GB for vLLM's own three
processes, at the same throughput. One thread owns the engine; commands reach it through a queue. Whatever
the event loop does is taken from the engine (they share the interpreter and the cores), so outputs leave
in batches: first tokens and ends at once, all others seldom enough that many readers do not stop the engine.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import ServingConfig
from serving.driver import (
    NO_CHUNK_KV,
    EngineAdapter,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    OutputStream,
    StartTimings,
)
from serving.errors import GeneratorUnavailable, InvalidGeneration, ModelUnusable
from serving.step_engine import EngineBuilder, StepEngine

logger = logging.getLogger(__name__)
T = TypeVar("T")

TELL_S_PER_REQUEST = 0.025
"""Least time between two batches of outputs that hold nothing urgent, for each request that runs."""
TELL_RANGE_S = (0.05, 0.2)
"""Bounds of that time: one reader sees text 20 times a second, eight and more see it five times."""
STOP_GRACE_S = 30.0
"""Longest wait for the step under way when stopping."""


def build_vllm_engine(
    config: ServingConfig, folder: str, kv_events: str | None = None
) -> tuple[StepEngine, StartTimings]:
    """Return vLLM's engine and where the time of its start went; see `choose_driver` for `kv_events`."""
    begun = time.monotonic()
    from serving.vllm_engine import VllmEngine

    imported = time.monotonic()
    engine = VllmEngine(config, folder, kv_events)
    return engine, StartTimings(imported - begun, time.monotonic() - imported)


@dataclass(frozen=True, slots=True)
class _Submit:
    request: EngineRequest
    stream: OutputStream


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[StepEngine], Any]
    answer: Future[Any]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(slots=True)
class _Running:
    stream: OutputStream
    begun: bool = False


News = list[tuple[OutputStream, EngineOutput | Exception]]


class InprocDriver:
    """Drives a synchronous engine from one thread.

    Args:
        config: Settings of the engine.
        folder: The model's folder.
        build: Makes the engine.
    """

    def __init__(
        self, config: ServingConfig, folder: str, *, build: EngineBuilder = build_vllm_engine
    ) -> None:
        self._config = config
        self._folder = folder
        self._build = build
        self._commands: queue.SimpleQueue[_Submit | _Abort | _Call | _Stop] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._held: News = []
        self._told_s = 0.0
        self._load = EngineLoad()
        self._no_blend_reason: str | None = "the engine has not started"
        self._kv_tokens = 0
        self._failure: str | None = None
        self._stopping = False
        self._gate = threading.Lock()
        """Held to submit and to close: no request can slip in behind the last one failed."""
        self._started: Future[StartTimings] = Future()
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> str | None:
        """Return why the engine died, or None while it lives."""
        return self._failure

    async def start(self) -> StartTimings:
        """Load the model and begin to serve; a second call returns the first call's timings.

        Raises:
            ModelUnusable: The engine refused the model; the message says why.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="graft-engine", daemon=True)
            self._thread.start()
        return await asyncio.shield(asyncio.wrap_future(self._started))

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs; called on an event loop.

        Raises:
            GeneratorUnavailable: The engine died or is stopping.
        """
        if self._failure is not None:
            raise GeneratorUnavailable(self._failure)
        stream = OutputStream(request.request_id, asyncio.get_running_loop())
        with self._gate:
            if self._stopping or self._thread is None:
                raise GeneratorUnavailable("The engine is not running; start it, or send the request again.")
            self._commands.put(_Submit(request, stream))
        return stream

    def abort(self, request_id: str) -> None:
        """Stop a request; unknown ids are ignored."""
        self._commands.put(_Abort(request_id))

    def load(self) -> EngineLoad:
        """Return what the engine is working on."""
        return self._load

    @property
    def no_blend_reason(self) -> str | None:
        """Return why requests are served exactly, or None where chunks can be blended."""
        return self._no_blend_reason

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens of KV the engine can hold; 0 before it has started."""
        return self._kv_tokens

    async def store_stats(self) -> StoreStats | None:
        """Return what the chunk store holds and did; None where there is none, or the engine is gone."""
        if self._no_blend_reason == NO_CHUNK_KV:
            return None
        with suppress(GeneratorUnavailable):
            return await self._call(lambda engine: engine.store_stats())

    async def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where the chunk store has each of these chunks; None where it has not."""
        with suppress(GeneratorUnavailable):
            return await self._call(lambda engine: engine.chunk_tiers(keys))
        return [None] * len(keys)

    async def load_adapter(self, adapter: EngineAdapter) -> None:
        """Load a LoRA adapter; see `Driver.load_adapter`.

        Raises:
            InvalidAdapter: The engine refused it; the message says why.
            GeneratorUnavailable: The engine died or is stopping.
        """
        await self._call(lambda engine: engine.load_adapter(adapter))

    async def unload_adapter(self, adapter: EngineAdapter) -> None:
        """Remove an adapter that no request uses; does nothing where the engine is gone."""
        with suppress(GeneratorUnavailable):
            await self._call(lambda engine: engine.unload_adapter(adapter))

    async def update_weights(self, folder: str) -> None:
        """Put other weights in the place of the model's; see `Driver.update_weights`.

        Raises:
            ModelUnusable: The engine could not; its weights are then undefined.
            GeneratorUnavailable: The engine died or is stopping.
        """
        await self._call(lambda engine: engine.update_weights(folder))

    async def _call(self, work: Callable[[StepEngine], T]) -> T:
        """Return what work on the engine's thread returns, between two steps."""
        answer: Future[T] = Future()
        with self._gate:
            if self._stopping or not self._started.done():
                raise GeneratorUnavailable(self._failure or "The engine is not running.")
            self._commands.put(_Call(work, answer))
        return await asyncio.wrap_future(answer)

    async def stop(self) -> None:
        """Fail what is under way and free the model; safe to call twice."""
        thread = self._thread
        with self._gate:
            self._stopping = True
        if thread is not None:
            self._commands.put(_Stop())
            await asyncio.to_thread(thread.join, STOP_GRACE_S)

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            engine, timings = self._build(self._config, self._folder)
        except Exception as error:
            self._failure = f"The engine could not load {self._config.model!r}: {error}"
            self._started.set_exception(ModelUnusable(self._failure))
            return
        self._no_blend_reason = engine.no_blend_reason
        self._kv_tokens = engine.kv_tokens
        self._load = engine.load()
        self._started.set_result(timings)
        reason = "The engine is stopping; send the request again once it is back."
        try:
            while self._obey(engine):
                if engine.busy():
                    self._step(engine)
        except Exception as error:
            logger.exception("the engine died")
            reason = f"The engine died ({type(error).__name__}: {error}); it answers again after a restart."
            self._failure = reason
        finally:
            self._fail_all(reason)
            engine.close()

    def _obey(self, engine: StepEngine) -> bool:
        """Carry out waiting commands, waiting for one while idle; return False to stop."""
        wait = not engine.busy()
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                self._load = engine.load()
                return True
            wait = False
            if isinstance(command, _Submit):
                self._add(engine, command)
            elif isinstance(command, _Abort):
                self._abort(engine, command.request_id)
            elif isinstance(command, _Call):
                _answer(command, engine)
            else:
                return False

    def _add(self, engine: StepEngine, command: _Submit) -> None:
        request, stream = command.request, command.stream
        try:
            engine.add(request)
        except ValueError as error:
            self._held.append((stream, InvalidGeneration(f"The engine refused the request: {error}")))
            self._tell(engine)
            return
        self._running[request.request_id] = _Running(stream)

    def _abort(self, engine: StepEngine, request_id: str) -> None:
        running = self._running.pop(request_id, None)
        if running is None:
            return
        self._held.append((running.stream, engine.abort(request_id)))
        self._load = engine.load()
        self._tell(engine)

    def _step(self, engine: StepEngine) -> None:
        urgent = False
        for request_id, output in engine.step():
            running = self._running.get(request_id)
            if running is None:
                continue
            urgent = urgent or output.finish_reason is not None or not running.begun
            running.begun = True
            if output.finish_reason is not None:
                del self._running[request_id]
            self._held.append((running.stream, output))
        self._load = engine.load()
        if urgent or time.monotonic() - self._told_s >= self._tell_interval_s():
            self._tell(engine)

    def _tell_interval_s(self) -> float:
        low_s, high_s = TELL_RANGE_S
        return min(max(TELL_S_PER_REQUEST * len(self._running), low_s), high_s)

    def _fail_all(self, reason: str) -> None:
        """End every stream, also those submitted while the engine was going down."""
        with self._gate:
            self._stopping = True
        self._load = EngineLoad()
        streams = [running.stream for running in self._running.values()]
        self._running.clear()
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                break
            if isinstance(command, _Submit):
                streams.append(command.stream)
            elif isinstance(command, _Call) and command.answer.set_running_or_notify_cancel():
                command.answer.set_exception(GeneratorUnavailable(reason))
        self._held += [(stream, GeneratorUnavailable(reason)) for stream in streams]
        self._tell(None)

    def _tell(self, engine: StepEngine | None) -> None:
        """Hand what is held to the readers' loops; drop requests whose loop is closed."""
        held, self._held = self._held, []
        self._told_s = time.monotonic()
        by_loop: dict[asyncio.AbstractEventLoop, News] = {}
        for stream, item in held:
            by_loop.setdefault(stream.loop, []).append((stream, item))
        for loop, news in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, news)
            except RuntimeError:  # the loop is closed, its readers are gone
                for request_id in {stream.request_id for stream, _ in news}:
                    if self._running.pop(request_id, None) is not None and engine is not None:
                        engine.abort(request_id)


def _answer(call: _Call, engine: StepEngine) -> None:
    if not call.answer.set_running_or_notify_cancel():
        return
    try:
        call.answer.set_result(call.work(engine))
    except Exception as error:
        # The caller's to deal with: what the engine refuses is no reason for it to stop.
        call.answer.set_exception(error)


def _deliver(news: News) -> None:
    for stream, item in news:
        if isinstance(item, EngineOutput):
            stream.put(item)
        else:
            stream.fail(item)
