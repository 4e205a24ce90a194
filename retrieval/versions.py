"""Index versions: what makes one, and where it stands.

A version is one embedder, one chunking and one way to store vectors. Two can be resident in a shard: a new
one is built beside the one that answers, and a switch moves every shard to it at one epoch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal

VectorCodec = Literal["float32", "float16", "int8", "binary"]
"""How an index version stores its vectors."""
TokenCodec = Literal["none", "sign", "int4", "int8"]
"""How an index version stores its token vectors for MaxSim; `none` keeps none."""
IndexKind = Literal[
    "auto",
    "exact",
    "ivf_sq8",
    "ivf_pq",
    "rabitq",
    "hnsw",
    "gpu_flat",
    "gpu_ivf",
    "gpu_cagra",
    "coded",
    "streamed",
]
"""The structure of an index version's base segment; `auto` picks by size and device."""


class VersionState(StrEnum):
    """Where an index version stands."""

    BUILDING = "building"
    """Documents are being embedded into it; it does not answer."""
    READY = "ready"
    """It holds every document and is kept up to date; it can be switched to at once."""
    ACTIVE = "active"
    """It answers."""
    RETIRED = "retired"
    """It is kept for a rollback but no longer follows changes; switching to it catches it up first."""


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """What makes an index version: two specs that differ anywhere are different versions."""

    embedder: str
    """`RetrievalConfig.embedder` of the model."""
    model_hash: str
    """`EmbedderInfo.model_hash` of its weights."""
    model_dim: int
    """Numbers the model makes."""
    chunk_tokens: int
    """Longest chunk in tokens."""
    chunk_overlap_tokens: int
    """Longest overlap of neighbours."""
    max_chunk_chars: int
    """Longest chunk in characters."""
    dim: int = 0
    """Numbers kept of each vector (Matryoshka); 0 for all."""
    vectors: VectorCodec = "float32"
    """How vectors are stored."""
    tokens: TokenCodec = "none"
    """How token vectors are stored."""
    kind: IndexKind = "auto"
    """The base segment's structure."""

    @property
    def version_id(self) -> str:
        """Return the name of the version: readable, and a hash of every field."""
        values = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(values.encode()).hexdigest()[:8]
        return f"{self.model_hash}-c{self.chunk_tokens}-{self.vectors}-{digest}"


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """An index version and how far it is."""

    version_id: str
    """Its name."""
    spec: VersionSpec
    """What makes it."""
    state: VersionState
    """Where it stands."""
    num_documents: int
    """Documents it holds."""
    num_wanted: int
    """Documents it will hold when it is complete."""
    num_chunks: int
    """Chunks it holds."""
    made_s: float
    """Unix time it was begun."""
    aliases: tuple[str, ...] = ()
    """Names that point to it."""
