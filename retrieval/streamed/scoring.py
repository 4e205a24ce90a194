"""Scores pages against the queries that want them and keeps each query's best rows, within bounded memory.

Legend: B pages of a kernel, q queries a page, R rows a page, Q queries, K rows wanted, A queries of a kernel,
S places of one of them in it, M rows of a kernel's answer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from retrieval.streamed.keys import EMPTY, pack
from retrieval.streamed.plan import Inverted, Pages, tiles
from retrieval.streamed.workspace import TileSize


class Scorer(Protocol):
    """Scores of the rows of pages."""

    def scores(self, page_B: np.ndarray, query_Bq: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Return float32[B, q, num_rows]; what stands beyond a page's last row is arbitrary."""
        ...


def upload(array: np.ndarray, where: torch.device) -> torch.Tensor:
    """Return a small host array on the device, without waiting for work queued there."""
    tensor = torch.from_numpy(array)
    return tensor if where.type == "cpu" else tensor.pin_memory().to(where, non_blocking=True)


def _merge(best_QK: torch.Tensor, keys_BqK: torch.Tensor, query_Bq: np.ndarray) -> None:
    """Put the best of a kernel's keys into the best of its queries; negative queries are padding."""
    where, query_M = best_QK.device, query_Bq.reshape(-1)
    if len(query_Bq) == 1 and query_M.min() >= 0:
        # One page: each query is there once.
        queries, keys_AK = upload(query_M, where), keys_BqK[0]
    else:
        valid = np.flatnonzero(query_M >= 0)
        order = valid[np.argsort(query_M[valid], kind="stable")]
        active, first, count = np.unique(query_M[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, count)
        row_AS = np.full((len(active), int(count.max())), -1, dtype=np.int64)
        row_AS[np.repeat(np.arange(len(active)), count), rank] = order
        rows, queries = upload(row_AS, where), upload(active, where)
        keys_ASK = keys_BqK.flatten(0, 1)[rows.clamp_min(0)]
        if len(order) < row_AS.size:
            keys_ASK.masked_fill_((rows < 0).unsqueeze(2), EMPTY)
        keys_AK = keys_ASK.flatten(1)
    merged = torch.cat((best_QK[queries], keys_AK), dim=1)
    best_QK[queries] = merged.topk(best_QK.shape[1], dim=1, sorted=False).values


def _valid(page_B: np.ndarray, pages: Pages, kept_N: np.ndarray | None, rows: int) -> np.ndarray:
    """Return bool[B, rows]: rows that exist and are kept by the filter."""
    column = np.arange(rows)
    valid_BR = column < pages.length_P[page_B, None]
    if kept_N is not None:
        row_BR = np.minimum(pages.start_P[page_B, None] + column, len(kept_N) - 1)
        valid_BR &= kept_N[row_BR]
    return valid_BR


def score_pages(
    scorer: Scorer,
    inverted: Inverted,
    places: np.ndarray,
    pages: Pages,
    best_QK: torch.Tensor,
    kept_N: np.ndarray | None,
    size: TileSize,
) -> None:
    """Score pages and keep each query's best keys in `best_QK`.

    Args:
        scorer: Scores of rows.
        inverted: The batch.
        places: Pages to score, as indices into `inverted.page_W`.
        pages: The page table.
        best_QK: int64[Q, K], changed in place.
        kept_N: bool[rows of the lists] on the host, rows that may be returned; None for all.
        size: Bounds of a kernel.
    """
    where, k = best_QK.device, best_QK.shape[1]
    for tile in tiles(inverted, places, size.max_queries, size.max_pages):
        page_B = inverted.page_W[tile.place_B]
        rows = int(pages.length_P[page_B].max())
        query_Bq = upload(tile.query_Bq, where)
        scores_BqR = scorer.scores(page_B, query_Bq.clamp_min(0), rows)
        first_B = upload(pages.start_P[page_B], where)
        row_B1R = (first_B[:, None] + torch.arange(rows, device=where)).unsqueeze(1)
        keys_BqR = pack(scores_BqR, row_B1R)
        if len(page_B) > 1 or kept_N is not None:
            valid_BR = _valid(page_B, pages, kept_N, rows)
            if not valid_BR.all():
                keys_BqR.masked_fill_(~upload(valid_BR, where).unsqueeze(1), EMPTY)
        if 2 * k < rows:
            keys_BqR = keys_BqR.topk(k, dim=2, sorted=False).values
        _merge(best_QK, keys_BqR, tile.query_Bq)
