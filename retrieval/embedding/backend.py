"""The seam between an embedder and what computes it: torch, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retrieval.types import EmbedderInfo


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A text as its backend reads it."""

    num_tokens: int
    """Its length, special tokens counted, after truncation."""
    tokens: Any
    """What the backend's `encode` takes; opaque to others."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One batch's vectors."""

    vectors_ND: np.ndarray
    """float32[N, dim], L2-normalised."""
    tokens: list[np.ndarray] | None
    """Per text float32[num_tokens, dim] unit vectors, special tokens left out; None unless asked for."""


class Backend(Protocol):
    """Computes vectors; `tokenise` and `encode` may be called from several threads at once."""

    info: EmbedderInfo
    """What it computes."""
    num_threads: int
    """Batches worth computing at once."""
    batch_tokens: int
    """Tokens of a batch that it computes fastest."""

    def tokenise(self, texts: Sequence[str], *, is_query: bool) -> list[Tokenised]:
        """Return each text with the model's prompt, cut to `info.max_tokens`."""
        ...

    def encode(self, texts: Sequence[Tokenised], *, with_tokens: bool) -> Encoded:
        """Return the vectors of one batch."""
        ...
