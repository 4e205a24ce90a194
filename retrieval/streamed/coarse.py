"""The coarse quantizer: spherical k-means over unit vectors, in torch, on any device.

Legend: N rows, D dimensions, C lists, S sampled rows.
"""

from __future__ import annotations

import numpy as np
import torch

_BLOCK_ROWS = 16_384
_SAMPLES_PER_LIST = 64


def training_bytes(num_rows: int, num_lists: int, dim: int) -> int:
    """Return about what training and assignment hold on their device: the sample twice, a block's scores."""
    num_sampled = min(num_rows, _SAMPLES_PER_LIST * num_lists)
    return 4 * (2 * num_sampled * dim + _BLOCK_ROWS * (num_lists + dim) + 3 * num_lists * dim)


def _nearest(rows_BD: torch.Tensor, centroids_CD: torch.Tensor) -> torch.Tensor:
    """Return int64[B], the list whose centroid has the largest inner product with each row."""
    return (rows_BD @ centroids_CD.T).argmax(dim=1)


def assign(matrix_ND: np.ndarray, centroids_CD: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Return int32[N], the list of every row; the matrix is read in blocks and may be memory-mapped."""
    centroids = torch.from_numpy(np.array(centroids_CD, dtype=np.float32)).to(device)
    lists_N = np.empty(len(matrix_ND), dtype=np.int32)
    for start in range(0, len(matrix_ND), _BLOCK_ROWS):
        block = np.array(matrix_ND[start : start + _BLOCK_ROWS], dtype=np.float32)
        found = _nearest(torch.from_numpy(block).to(device), centroids)
        lists_N[start : start + len(block)] = found.cpu().numpy()
    return lists_N


def train_centroids(
    matrix_ND: np.ndarray,
    num_lists: int,
    *,
    iterations: int = 10,
    seed: int = 0,
    device: str = "cpu",
) -> np.ndarray:
    """Return float32[C, D] of unit length, trained on a sample of 64 rows a list.

    A list left empty is started again from a random sampled row.

    Args:
        matrix_ND: float[N, D] of unit length; may be memory-mapped.
        num_lists: Lists wanted, 1 to N.
        iterations: Rounds of assignment and averaging.
        seed: What the sample and the start are drawn from.
        device: Where the arithmetic runs.

    Raises:
        ValueError: More lists than rows, or none.
    """
    num_rows = len(matrix_ND)
    if not 1 <= num_lists <= num_rows:
        raise ValueError(f"num_lists must be from 1 to the {num_rows} rows there are; got {num_lists}")
    generator = np.random.default_rng(seed)
    num_sampled = min(num_rows, _SAMPLES_PER_LIST * num_lists)
    chosen_S = np.sort(generator.choice(num_rows, num_sampled, replace=False))
    rows_SD = torch.from_numpy(np.array(matrix_ND[chosen_S], dtype=np.float32)).to(device)
    start_C = torch.from_numpy(generator.choice(num_sampled, num_lists, replace=False)).to(device)
    centroids_CD = rows_SD[start_C]
    for _ in range(iterations):
        lists_S = torch.cat([_nearest(block, centroids_CD) for block in rows_SD.split(_BLOCK_ROWS)])
        sums_CD = torch.zeros_like(centroids_CD).index_add_(0, lists_S, rows_SD)
        lengths_C1 = sums_CD.norm(dim=1, keepdim=True)
        spare_C = torch.from_numpy(generator.integers(0, num_sampled, num_lists)).to(device)
        centroids_CD = torch.where(lengths_C1 > 1e-6, sums_CD / lengths_C1.clamp_min(1e-6), rows_SD[spare_C])
    return np.ascontiguousarray(centroids_CD.cpu().numpy())
