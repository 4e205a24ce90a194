"""What a replica tells of the KV it holds and of its load, so that requests go where most can be reused."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.chunk_kv.store_stats import Tier


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica does and can do."""

    num_running: int = 0
    """Requests in the engine."""
    num_waiting: int = 0
    """Requests in its queue."""
    adapter_ids: tuple[str, ...] = ()
    """LoRA adapters it takes requests for."""
    blends: bool = False
    """Whether it takes KV of chunks from its chunk store."""


@dataclass(frozen=True, slots=True)
class KVReport:
    """The changes since an earlier report, or all there is."""

    life: str
    """Changes when the replica has restarted and lost what it held."""
    version: int
    """Names this report; the next one is asked for by it."""
    is_full: bool
    """Whether what it does not name is not there."""
    prefixes: dict[bytes, int | None] = field(default_factory=dict)
    """Tokens in whole blocks of the engine's cache down to a node (`serving.routing.prompt_path`); None where
    they have left."""
    chunks: dict[bytes, Tier | None] = field(default_factory=dict)
    """Where the chunk store has a chunk; None where it has not."""
    state: ReplicaState = ReplicaState()
    """What else it tells."""
