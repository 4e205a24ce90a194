"""The best rows of many queries, equal scores by lower row, whatever order rows are seen in.

Shapes: Q queries, N rows scored at once, K best rows.
"""

from __future__ import annotations

import torch

_ROW_BITS = 32
_ROW_MASK = 0xFFFFFFFF
_MAGNITUDE = 0x7FFFFFFF

MAX_ROWS = 2**32
"""Rows that an index can hold: a rank key has 32 bits for the row."""


class TopRows:
    """Keeps the `k` best rows of each query while rows are scored block by block, on any device.

    Score and row are packed into one 64-bit key whose order is (score falling, row rising): selection then
    has no ties left to break, so blocks, shards and their order cannot change the result.
    """

    def __init__(self, num_queries: int, k: int, device: torch.device | str = "cpu") -> None:
        """Start without rows.

        Args:
            num_queries: Q.
            k: Rows kept, at least 1.
            device: Where scores are.
        """
        self._k = k
        self._keys_QK = torch.empty((num_queries, 0), dtype=torch.int64, device=device)

    def add(self, scores_QN: torch.Tensor, rows_N: torch.Tensor) -> None:
        """Take in rows and their scores.

        Args:
            scores_QN: float32[Q, N], no NaN.
            rows_N: int64[N] or int64[Q, N], 0 to `MAX_ROWS` - 1; no row of a query twice.
        """
        if self._keys_QK.shape[1] == self._k:
            # Most rows lose against the worst kept one; keys are made for columns with a chance alone.
            chance_N = (scores_QN >= _scores(self._keys_QK[:, -1:])).any(dim=0)
            scores_QN, rows_N = scores_QN[:, chance_N], rows_N[..., chance_N]
        keys_QN = torch.cat([self._keys_QK, _keys(scores_QN, rows_N)], dim=1)
        self._keys_QK = keys_QN.topk(min(self._k, keys_QN.shape[1]), dim=1).values

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows int64[Q, K] and scores float32[Q, K], best first; with fewer rows than `k`, all."""
        return _ROW_MASK - (self._keys_QK & _ROW_MASK), _scores(self._keys_QK)


def _keys(scores_QN: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
    # Adding zero turns -0.0 into 0.0: equal scores must have equal bits.
    bits_QN = (scores_QN + 0.0).view(torch.int32)
    # IEEE 754 floats order like integers once the magnitude of negative ones is flipped.
    ordered_QN = bits_QN ^ ((bits_QN >> 31) & _MAGNITUDE)
    return (ordered_QN.to(torch.int64) << _ROW_BITS) | (_ROW_MASK - rows_N)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    ordered = (keys >> _ROW_BITS).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & _MAGNITUDE)).view(torch.float32)
