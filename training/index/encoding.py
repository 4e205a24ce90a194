"""What turns passages into vectors: the seam to the model, and the fixed blocks of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from training.errors import NumericsError


class PassageEncoder(Protocol):
    """Passages to vectors with one set of weights."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim]; the same texts in the same call give the same bytes."""
        ...


class ProbeEncoder(PassageEncoder, Protocol):
    """The weights now training, seen from both towers."""

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return float32[len(queries), dim]."""
        ...


LoadEncoder = Callable[[Path], PassageEncoder]
"""Builds an encoder from a folder of snapshot weights; must be picklable for encoders in other processes."""


@dataclass(frozen=True, slots=True, order=True)
class RowRange:
    """Rows [first, last) of a corpus."""

    first: int
    """First row."""
    last: int
    """One past the last row."""

    def __str__(self) -> str:
        return f"[{self.first}, {self.last})"


def row_ranges(num_rows: int, block_rows: int) -> tuple[RowRange, ...]:
    """Return the fixed blocks that a corpus is encoded, stored and searched in.

    Args:
        num_rows: Rows of the corpus, at least 1.
        block_rows: Rows of a block; the last one may hold fewer.
    """
    return tuple(
        RowRange(first, min(first + block_rows, num_rows)) for first in range(0, num_rows, block_rows)
    )


def corpus_fingerprint(texts: Sequence[str]) -> str:
    """Return 32 hex digits that name the texts and their order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def encode_block(encoder: PassageEncoder, texts: Sequence[str], rows: RowRange, dim: int) -> np.ndarray:
    """Return the vectors of one block, encoded in one call so that every worker gets the same bytes.

    Args:
        encoder: Weights of the version.
        texts: Texts of the block.
        rows: Where they lie in the corpus; names them in messages.
        dim: Columns that the index holds.

    Returns:
        float32[len(texts), dim].

    Raises:
        ValueError: The encoder returned another shape.
        NumericsError: A vector is NaN or infinite.
    """
    rows_ND = np.asarray(encoder.encode(texts), dtype=np.float32)
    if rows_ND.shape != (len(texts), dim):
        raise ValueError(
            f"the encoder returned shape {rows_ND.shape} for rows {rows}, expected {(len(texts), dim)}: "
            "check dim and the pooling of the encoder"
        )
    finite_N = np.isfinite(rows_ND).all(axis=1)
    if not finite_N.all():
        raise NumericsError(
            f"the encoder returned NaN or infinite numbers for row {rows.first + int(np.argmin(finite_N))}: "
            "the snapshot weights have diverged, lower the learning rate or resume from an earlier checkpoint"
        )
    return rows_ND
