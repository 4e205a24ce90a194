"""One bit a dimension and two bytes a vector that estimate inner products without bias.

With c the centroid of a vector's list, r = x - c, P a random rotation and b = sign(P r) in {-1, 1}^W:

    <q, x> = <q, c> + <q, r>  ~  <q, c> + factor * <P q, b>,   factor = norm2(r)**2 / norm1(P r)

Because <P r, b> = norm1(P r), the estimate is exact for q along r; what is left is the part of q orthogonal
to it, which the rotation makes unbiased with a standard error of about norm(r) * 0.76 / sqrt(W) for a unit
query. So an exact rerank of a few hundred candidates finds the neighbours.

Legend: N rows, D dimensions, W dimensions after the rotation (D rounded up to whole bytes), C lists.

Source: Gao and Long, RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for
Approximate Nearest Neighbor Search, SIGMOD 2024, with the query in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from retrieval.streamed.host_lists import HostLists

_BLOCK_ROWS = 16_384


def rotation(dim: int, seed: int) -> np.ndarray:
    """Return float32[D, W], the first D rows of a random orthogonal matrix; W is D up to whole bytes."""
    width = -(-dim // 8) * 8
    gaussian = np.random.default_rng(seed).standard_normal((width, width))
    orthogonal, triangular = np.linalg.qr(gaussian)
    # Signs of the diagonal make the distribution uniform (Mezzadri 2007).
    return np.ascontiguousarray((orthogonal * np.sign(np.diag(triangular)))[:dim], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of lists, in list order."""

    rotation_DW: np.ndarray
    """float32[D, W]."""
    bits_NB: np.ndarray
    """uint8[N, W / 8]; bit i of byte j is 1 where dimension 8 j + i of P r is positive."""
    factor_N: np.ndarray
    """float16[N]."""

    @property
    def num_bytes(self) -> int:
        """Return what they take on the device, the rotation included."""
        return self.rotation_DW.nbytes + self.bits_NB.nbytes + self.factor_N.nbytes

    @classmethod
    def encode(
        cls, lists: HostLists, matrix_ND: np.ndarray | None = None, *, seed: int = 0, device: str = "cpu"
    ) -> Codes:
        """Return the codes of all rows of lists, computed in blocks.

        Args:
            lists: The vectors and their centroids; vectors may be memory-mapped.
            matrix_ND: float[N, D] by position, for lists that hold no vectors; may be memory-mapped.
            seed: For the rotation.
            device: Where the arithmetic runs.
        """
        turn_DW = rotation(lists.dim, seed)
        turn = torch.from_numpy(turn_DW).to(device)
        bits_NB = np.empty((lists.num_rows, turn_DW.shape[1] // 8), dtype=np.uint8)
        factor_N = np.empty(lists.num_rows, dtype=np.float16)
        list_N = np.repeat(np.arange(lists.num_lists), np.diff(lists.offsets_C1))
        weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
        for start in range(0, lists.num_rows, _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            rows = lists.vectors_ND[block] if matrix_ND is None else matrix_ND[lists.ids_N[block]]
            rest = rows.astype(np.float32) - lists.centroids_CD[list_N[block]]
            turned = torch.from_numpy(rest).to(device) @ turn
            bits = (turned > 0).view(len(rest), -1, 8).to(torch.uint8)
            bits_NB[block] = (bits * weights).sum(dim=2, dtype=torch.uint8).cpu().numpy()
            length_1 = turned.abs().sum(dim=1)
            factor = turned.square().sum(dim=1) / length_1.clamp_min(1e-20)
            factor_N[block] = factor.cpu().numpy()
        return cls(turn_DW, bits_NB, factor_N)
