"""Settings of the vector segments: what `RetrievalConfig` says of them, checked once there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.config import RetrievalConfig


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """How vector segments are built and searched."""

    num_threads: int = 0
    """Threads of FAISS; 0 for all cores this process may use."""
    device: str = "auto"
    """Where `auto` puts a base segment: `auto`, `cpu`, `cuda` or `cuda:N`."""
    gather_max_rows: int = 20_000
    """A selection of at most this many rows, or 2 % of all, is copied out and searched exactly."""
    recall_floor: float = 0.95
    """Recall@10 the tuner must reach on held-out queries."""
    delta_max_rows: int = 20_000
    """Rows after the base from which compaction is due; they are searched exactly until then."""
    max_dead_share: float = 0.2
    """Share of dead rows from which compaction is due."""
    memory_limit_bytes: int = 0
    """Memory a build may take; 0 for what the machine has free."""
    gpu_memory_limit_bytes: int = 0
    """GPU memory a base segment may take beside a language model; 0 for what the device has free."""
    seed: int = 0
    """Of training samples and held-out queries."""

    @classmethod
    def of(cls, config: RetrievalConfig) -> VectorSettings:
        """Return the settings a configuration asks for."""
        return cls(
            num_threads=config.vector_threads,
            device=config.vector_device,
            gather_max_rows=config.gather_max_rows,
            recall_floor=config.recall_floor,
            delta_max_rows=config.delta_max_rows,
            max_dead_share=config.max_dead_share,
            memory_limit_bytes=config.index_memory_limit_bytes,
            gpu_memory_limit_bytes=config.gpu_memory_limit_bytes,
        )
