"""A score and a row in one 64-bit integer, so that top-k, merging and ties are one integer comparison.

The upper half is the score's bits, mapped so that integers order as the floats do; the lower half is the
complement of the row, so that of equal scores the lower row wins. `EMPTY` is below every key. Because keys
are totally ordered and top-k of a union is top-k of top-k's, results do not depend on how work was cut up.
"""

from __future__ import annotations

import numpy as np
import torch

EMPTY = -(2**63)
_LOW = 0xFFFFFFFF


def pack(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return int64 keys of float32 scores and int64 rows (0 to 2**31 - 1), broadcast against each other."""
    # Adding zero turns -0.0 into 0.0: equal scores must have equal bits.
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - rows)


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 scores and int64 rows of keys; -inf and -1 where a key is `EMPTY`."""
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
    rows = _LOW - (keys & _LOW)
    empty = keys == EMPTY
    return np.where(empty, np.float32(-np.inf), scores), np.where(empty, -1, rows)
