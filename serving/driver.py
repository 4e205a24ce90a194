"""The seam between a generator and the engine under it.

A driver takes token ids and gives back pieces of output. Two exist: `InprocDriver` (CPU: the engine in
this process, one thread) and `AsyncDriver` (GPU: vLLM's own engine processes). Everything else - prompts,
admission, deadlines, totals - is written once, in `serving.generator`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from serving.chunk_kv.blend_plan import BlendPlan, ChunkUse
from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import ServingConfig
from serving.types import Sampling

NO_CHUNK_KV = "serving.chunk_kv_bytes is 0"
"""Why an engine without a chunk store blends nothing."""

EngineFinish = Literal["stop", "length", "abort", "error"]
"""Why the engine ended a request; `error` for one that it took and could not serve."""


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """A LoRA adapter as the engine knows it."""

    number: int
    """Unique among all that the engine ever had, 1 or more."""
    name: str
    """The same; KV is kept apart by it."""
    folder: str
    """Its files, in PEFT's form."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the engine sees it."""

    request_id: str
    """Unique among the requests under way."""
    token_ids: list[int]
    """The prompt, int[num_tokens], not empty and shorter than the context window."""
    sampling: Sampling
    """`max_tokens` fits the context window."""
    cache_salt: str
    """KV blocks are shared only between requests of equal salt."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the generation; the last one is reported, its text is not."""
    priority: int = 0
    """Lower runs sooner."""
    blend: BlendPlan | None = None
    """What to load from the chunk store or to capture into it; engines without one ignore it."""
    adapter: EngineAdapter | None = None
    """A loaded adapter to generate with."""
    num_logprobs: int = 0
    """Likeliest tokens whose log-probabilities are reported, 0 to 20."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """A piece of output."""

    text: str
    """New characters."""
    token_ids: tuple[int, ...]
    """New token ids."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was reused."""
    finish_reason: EngineFinish | None = None
    """Set on the last piece."""
    chunk_use: ChunkUse | None = None
    """What became of the request's `blend`; set on the last piece of a request that had one."""
    first_logprobs: dict[int, float] | None = None
    """Log-probabilities of the likeliest first tokens by id; set on the first piece, where asked for."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the engine is working on."""

    num_running: int = 0
    """Requests that hold KV blocks."""
    num_waiting: int = 0
    """Requests accepted and not started."""
    kv_usage: float | None = None
    """Share of the KV blocks that requests under way hold, 0 to 1; None where the engine does not tell."""


@dataclass(frozen=True, slots=True)
class StartTimings:
    """Where the seconds of an engine's start went."""

    import_s: float
    """Importing torch and vllm."""
    engine_s: float
    """Reading weights and laying out the KV cache."""


def _nobody_watches(*_: object) -> None:
    """Do nothing with what a stream tells."""


@dataclass(slots=True)
class OutputStream:
    """The outputs of one request on their way to the one task that reads them.

    Pieces that arrive while the reader is busy are handed over as one.
    """

    request_id: str
    """The request."""
    loop: asyncio.AbstractEventLoop
    """Loop of the reader; `put` and `fail` are called on it."""
    on_piece: Callable[[EngineOutput], None] = _nobody_watches
    """Called on the loop with every piece as it comes, whether or not anybody reads."""
    on_end: Callable[[], None] = _nobody_watches
    """Called on the loop once the engine has let go of the request, after its last piece."""
    _pieces: list[EngineOutput] = field(default_factory=list)
    _error: Exception | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: EngineOutput) -> None:
        """Add a piece."""
        self._pieces.append(output)
        self._ready.set()
        self.on_piece(output)
        if output.finish_reason is not None:
            self.on_end()

    def fail(self, error: Exception) -> None:
        """End the stream with an error once the reader has taken what came before it."""
        self._error = error
        self._ready.set()
        self.on_end()

    async def next(self) -> EngineOutput:
        """Return everything that has arrived since the last call as one piece; waits for the first.

        Raises:
            GeneratorUnavailable: The engine died or is stopping.
            InvalidGeneration: The engine refused the request's parameters.
        """
        await self._ready.wait()
        pieces = self._pieces
        if not pieces:
            assert self._error is not None
            raise self._error
        self._pieces = []
        if self._error is None:
            self._ready.clear()
        return merge_outputs(pieces)


def merge_outputs(pieces: list[EngineOutput]) -> EngineOutput:
    """Return consecutive pieces of one request, at least one, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return EngineOutput(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        num_cached_tokens=pieces[-1].num_cached_tokens,
        finish_reason=pieces[-1].finish_reason,
        chunk_use=pieces[-1].chunk_use,
        first_logprobs=pieces[0].first_logprobs,
    )


class Driver(Protocol):
    """One engine."""

    @property
    def failure(self) -> str | None:
        """Return why the engine died, or None while it lives."""
        ...

    async def start(self) -> StartTimings:
        """Load the model and begin to serve; a second call returns the first call's timings.

        Raises:
            ModelUnusable: The engine refused the model; the message says why.
        """
        ...

    def submit(self, request: EngineRequest) -> OutputStream:
        """Queue a request and return its outputs; called on an event loop.

        Raises:
            GeneratorUnavailable: The engine died or is stopping.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Stop a request; its stream ends with `abort` after what was generated. Unknown ids are ignored."""
        ...

    def load(self) -> EngineLoad:
        """Return what the engine is working on."""
        ...

    @property
    def no_blend_reason(self) -> str | None:
        """Return why requests are served exactly, or None where chunks can be blended."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens of KV the engine can hold; 0 before it has started."""
        ...

    async def load_adapter(self, adapter: EngineAdapter) -> None:
        """Load a LoRA adapter.

        Raises:
            InvalidAdapter: The engine refused it; the message says why.
            GeneratorUnavailable: The engine died or is stopping.
        """
        ...

    async def unload_adapter(self, adapter: EngineAdapter) -> None:
        """Remove an adapter that no request uses; does nothing where the engine is gone."""
        ...

    async def update_weights(self, folder: str) -> None:
        """Put other weights of the same shapes in the place of the model's, and forget all KV.

        Args:
            folder: Holds them; no request is under way.

        Raises:
            ModelUnusable: The engine could not; its weights are then undefined.
            GeneratorUnavailable: The engine died or is stopping.
        """
        ...

    async def store_stats(self) -> StoreStats | None:
        """Return what the chunk store holds and did; None where there is none, or the engine is gone."""
        ...

    async def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where the chunk store has each of these chunks; None where it has not."""
        ...

    async def stop(self) -> None:
        """Fail what is under way and free the model; safe to call twice."""
        ...


def choose_driver(config: ServingConfig, folder: str, kv_events: str | None = None) -> Driver:
    """Return the driver for this machine: `AsyncDriver` where a GPU is usable, else `InprocDriver`.

    Args:
        config: Settings of the engine.
        folder: The model's folder.
        kv_events: Where the engine is to publish the changes of its prefix cache; None for nowhere.
    """
    if config.device != "cpu":
        import torch

        if torch.cuda.is_available():
            from serving.async_driver import AsyncDriver

            return AsyncDriver(config, folder, kv_events=kv_events)
        if config.device == "cuda":
            from serving.errors import ModelUnusable

            raise ModelUnusable(
                "serving.device is 'cuda' but torch sees no GPU; check `nvidia-smi` and that the GPU extra "
                "is installed (`pip install graft[gpu]`), or set serving.device to 'auto'."
            )
    from serving.inproc_driver import InprocDriver, build_vllm_engine

    return InprocDriver(config, folder, build=partial(build_vllm_engine, kv_events=kv_events))
