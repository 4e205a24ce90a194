"""From the last hidden states of a transformer to the vector of a text and the vectors of its tokens.

What sentence-transformers' `Pooling` and `Normalize` modules compute, in numpy; a test proves them equal.

Shapes: N texts, T tokens padded, D dimensions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

PoolingMode = Literal["mean", "cls"]
_SMALLEST_NORM = 1e-12
"""torch.nn.functional.normalize divides by no less."""


def pool(hidden_NTD: np.ndarray, mask_NT: np.ndarray, mode: PoolingMode) -> np.ndarray:
    """Return float32[N, D], L2-normalised.

    Args:
        hidden_NTD: float32[N, T, D].
        mask_NT: int[N, T], 1 for a token and 0 for padding, which is on the right.
        mode: `mean` over the tokens, or the first token's (`cls`).
    """
    if mode == "cls":
        return unit(hidden_NTD[:, 0])
    weights_N1T = mask_NT[:, None, :].astype(np.float32)
    sums_ND = np.matmul(weights_N1T, hidden_NTD)[:, 0]
    return unit(sums_ND / np.maximum(mask_NT.sum(axis=1, keepdims=True, dtype=np.float32), 1e-9))


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Return float32[N, D], every row of length 1."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    return np.ascontiguousarray(vectors_ND / np.maximum(norms_N1, _SMALLEST_NORM), dtype=np.float32)


def token_vectors(hidden_NTD: np.ndarray, kept_NT: np.ndarray) -> list[np.ndarray]:
    """Return per text float32[num_tokens, D], unit length, of the tokens where `kept_NT` is true."""
    return [unit(hidden_TD[kept_T]) for hidden_TD, kept_T in zip(hidden_NTD, kept_NT, strict=True)]
