"""The seam between the thread that drives an engine and a synchronous engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import ServingConfig
from serving.driver import EngineAdapter, EngineLoad, EngineOutput, EngineRequest, StartTimings


class StepEngine(Protocol):
    """A synchronous engine; every call comes from the driver's thread."""

    def add(self, request: EngineRequest) -> None:
        """Queue a request; raises ValueError for one it will not take."""
        ...

    def abort(self, request_id: str) -> EngineOutput:
        """Drop a request under way and return what was not yet handed out, as its last output."""
        ...

    def step(self) -> list[tuple[str, EngineOutput]]:
        """Run one batch and return new output by request id."""
        ...

    def busy(self) -> bool:
        """Return whether any request is unfinished."""
        ...

    def load(self) -> EngineLoad:
        """Return what the engine is working on."""
        ...

    def update_weights(self, folder: str) -> None:
        """Put other weights in the place of the model's and forget all KV; raises ModelUnusable."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...

    @property
    def no_blend_reason(self) -> str | None:
        """Return why chunks' KV is not used, or None where it is."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens of KV it can hold."""
        ...

    def store_stats(self) -> StoreStats | None:
        """Return what its chunk store holds and did; None where it has none."""
        ...

    def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where its chunk store has each of these chunks; None where it has not."""
        ...

    def load_adapter(self, adapter: EngineAdapter) -> None:
        """Load an adapter; raises InvalidAdapter for one it will not take."""
        ...

    def unload_adapter(self, adapter: EngineAdapter) -> None:
        """Remove an adapter that no request uses."""
        ...


EngineBuilder = Callable[[ServingConfig, str], tuple[StepEngine, StartTimings]]
"""Makes the engine from settings and the model's folder; called on the driver's thread."""
