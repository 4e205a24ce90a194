"""A synchronous engine that writes 'a' once a step, for tests of the thread that drives one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from serving.chunk_kv.blend_plan import ChunkUse
from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.driver import NO_CHUNK_KV, EngineAdapter, EngineLoad, EngineOutput, EngineRequest, StartTimings
from serving.generator import LocalGenerator
from serving.types import GeneratedChunk, GenerateRequest, Prompt, Sampling, Segment

TOKEN = 97

Start = Callable[..., Awaitable[LocalGenerator]]
"""Starts a generator over an engine, with settings."""


@dataclass
class LetterEngine:
    """Writes one letter per request and step until `max_tokens`; can be stuck, broken or slow."""

    step_s: float = 0.001
    max_num_seqs: int = 4
    breaks_at_step: int | None = None
    letter: str = "a"
    """What it writes as one token."""
    held_back: str = ""
    gives_up: set[int] = field(default_factory=set)
    """Lengths of requests that end with an error."""
    stuck: threading.Event = field(default_factory=threading.Event)
    """Set it to let a stuck step go on; `sticks` says whether steps wait for it."""
    sticks: bool = False
    num_steps: int = 0
    aborted: list[str] = field(default_factory=list)
    closed: bool = False
    no_blend_reason: str | None = NO_CHUNK_KV
    kv_tokens: int = 10_000
    stored: StoreStats | None = None
    weights: list[str] = field(default_factory=list)
    weight_failures: list[Exception] = field(default_factory=list)
    adapters: dict[int, EngineAdapter] = field(default_factory=dict)
    requests: dict[str, EngineRequest] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    seen: list[EngineRequest] = field(default_factory=list)

    def add(self, request: EngineRequest) -> None:
        if request.sampling.stop == ("refuse me",):
            raise ValueError("stop is refused here")
        if request.adapter is not None and not os.path.isdir(request.adapter.folder):
            raise ValueError("the adapter's files, which an engine may read again at any time, are gone")
        self.seen.append(request)
        self.requests[request.request_id] = request
        self.written[request.request_id] = 0

    def abort(self, request_id: str) -> EngineOutput:
        del self.requests[request_id]
        self.aborted.append(request_id)
        return EngineOutput(self.held_back, (), finish_reason="abort")

    def step(self) -> list[tuple[str, EngineOutput]]:
        self.num_steps += 1
        if self.num_steps == self.breaks_at_step:
            raise RuntimeError("out of ink")
        if self.sticks:
            self.stuck.wait(30)
        time.sleep(self.step_s)
        outputs: list[tuple[str, EngineOutput]] = []
        for request_id in list(self.requests)[: self.max_num_seqs]:
            self.written[request_id] += 1
            if self.requests[request_id].sampling.max_tokens in self.gives_up:
                del self.requests[request_id]
                outputs.append((request_id, EngineOutput("", (), finish_reason="error")))
                continue
            request = self.requests[request_id]
            if self.written[request_id] < request.sampling.max_tokens:
                outputs.append((request_id, EngineOutput(self.letter, (TOKEN,))))
                continue
            del self.requests[request_id]
            outputs.append((request_id, EngineOutput(self.letter, (TOKEN,), 0, "length", _use(request))))
        return outputs

    def busy(self) -> bool:
        return bool(self.requests)

    def load(self) -> EngineLoad:
        num_running = min(len(self.requests), self.max_num_seqs)
        return EngineLoad(num_running, len(self.requests) - num_running, num_running / self.max_num_seqs)

    def store_stats(self) -> StoreStats | None:
        return self.stored

    def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        return [None] * len(keys)

    def load_adapter(self, adapter: EngineAdapter) -> None:
        self.adapters[adapter.number] = adapter

    def unload_adapter(self, adapter: EngineAdapter) -> None:
        used = [request.adapter for request in self.requests.values()]
        assert adapter not in used, "a request still uses it"
        del self.adapters[adapter.number]

    def update_weights(self, folder: str) -> None:
        assert not self.requests, "a request is under way"
        self.weights.append(folder)
        if self.weight_failures:
            raise self.weight_failures.pop()

    def close(self) -> None:
        self.closed = True


def _use(request: EngineRequest) -> ChunkUse | None:
    """Return what a store without chunks makes of a plan."""
    plan = request.blend
    return None if plan is None else ChunkUse(missing=tuple(span.key for span in plan.load))


def build(engine: LetterEngine):
    """Return what `InprocDriver` calls to make its engine."""
    return lambda _config, _folder: (engine, StartTimings(0.25, 0.5))


async def until(holds: Callable[[], bool]) -> None:
    """Return once something holds that has no event to wait for."""
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true in 30 s")


def ask(max_tokens: int = 4, *, text: str = "write", **fields: object) -> GenerateRequest:
    """Return a request for so many letters."""
    sampling = Sampling(max_tokens=max_tokens)
    return GenerateRequest(Prompt((Segment("question", text),)), **{"sampling": sampling, **fields})  # type: ignore[arg-type]


async def collect(generator: LocalGenerator, request: GenerateRequest) -> list[GeneratedChunk]:
    """Return all that a generator streams."""
    return [chunk async for chunk in generator.generate(request)]
