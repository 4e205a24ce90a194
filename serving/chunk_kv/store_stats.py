"""What a chunk store counts; nothing here loads torch or vllm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["memory", "disk"]
"""Where a store has a chunk."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds, and what became of what was asked of it."""

    memory_chunks: int = 0
    """Chunks in memory."""
    memory_bytes: int = 0
    """Their bytes."""
    disk_chunks: int = 0
    """Chunks on disk, most of which are in memory too."""
    disk_bytes: int = 0
    """Their bytes."""
    memory_hits: int = 0
    """Reads answered from memory."""
    disk_hits: int = 0
    """Reads answered from disk."""
    misses: int = 0
    """Reads of chunks that are in neither."""
    evicted: int = 0
    """Entries that left a tier for others."""
    not_admitted: int = 0
    """Chunks worth less than what they would have displaced from memory, or larger than all of it."""
    corrupt: int = 0
    """Files that were not what had been written; deleted."""
    disk_errors: int = 0
    """Reads and writes that the disk refused."""
