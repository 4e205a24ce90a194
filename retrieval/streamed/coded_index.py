"""Codes of all lists on the device, exact rerank from host memory: past device memory without streaming.

A vector costs W / 8 + 2 bytes there (50 at 384 dimensions, a thirtieth of float32). The device scores the
codes of the probed lists and returns each query's best rows; the host scores those exactly from the matrix,
which may be a memory map larger than RAM.

Legend: N rows, D dimensions, W rotated dimensions, C lists, Q queries, K rows wanted, X rows reranked.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from retrieval.streamed.codes import Codes
from retrieval.streamed.device_memory import DeviceMemory
from retrieval.streamed.devices import Device, device_named
from retrieval.streamed.host_lists import HostLists
from retrieval.streamed.keys import EMPTY, unpack
from retrieval.streamed.plan import Pages, invert
from retrieval.streamed.queries import checked_queries, first_probes, probes_of
from retrieval.streamed.scoring import score_pages, upload
from retrieval.streamed.workspace import Workspace

_MAX_WORKSPACE_BYTES = 2 * 2**30
_RERANK_BYTES = 8 * 2**20
"""Rows one worker gathers at once on the host."""


class CodeScorer:
    """Estimated inner products with pages of codes."""

    def __init__(
        self,
        pages: Pages,
        bits_NB: torch.Tensor,
        factor_N: torch.Tensor,
        turned_QW: torch.Tensor,
        centroid_QC: torch.Tensor,
    ) -> None:
        self._pages = pages
        self._bits_NB = bits_NB
        self._factor_N = factor_N
        self._turned_QW = turned_QW
        self._half_sum_Q = turned_QW.sum(dim=1) / 2
        self._centroid_QC = centroid_QC
        self._shifts = torch.arange(8, dtype=torch.uint8, device=bits_NB.device)
        # float16 on a GPU: its error is a hundredth of the estimate's own.
        self._dtype = torch.float32 if bits_NB.device.type == "cpu" else torch.float16

    @staticmethod
    def row_temporary_bytes(width: int) -> int:
        """Return a bound on the temporaries of one row of W bits: its number, bits, shifted bits, floats."""
        return 8 + width // 8 + 2 + 2 * width + 4 * width

    def scores(self, page_B: np.ndarray, query_Bq: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Return float32[B, q, num_rows]."""
        where = self._bits_NB.device
        if len(page_B) == 1:
            first = int(self._pages.start_P[page_B[0]])
            bits_BRC = self._bits_NB[first : first + num_rows].unsqueeze(0)
            factor_BR = self._factor_N[first : first + num_rows].unsqueeze(0)
        else:
            start_B = upload(self._pages.start_P[page_B], where)
            row_BR = (start_B[:, None] + torch.arange(num_rows, device=where)).clamp_max_(
                len(self._bits_NB) - 1
            )
            bits_BRC, factor_BR = self._bits_NB[row_BR], self._factor_N[row_BR]
        bits_BRW = ((bits_BRC.unsqueeze(-1) >> self._shifts) & 1).flatten(2).to(self._dtype)
        queries_BqW = self._turned_QW[query_Bq].to(self._dtype)
        dots_BqR = torch.bmm(queries_BqW, bits_BRW.transpose(1, 2)).float()
        # <P q, b> with b = 2 bits - 1.
        dots_BqR.sub_(self._half_sum_Q[query_Bq].unsqueeze(2)).mul_(2 * factor_BR.float().unsqueeze(1))
        list_B = upload(self._pages.list_P[page_B], where)
        return dots_BqR.add_(self._centroid_QC[query_Bq, list_B[:, None]].unsqueeze(2))


class CodedIndex:
    """Lists whose codes are resident; `search` estimates, then reranks exactly."""

    kind = "coded"

    def __init__(
        self,
        lists: HostLists,
        codes: Codes,
        matrix_ND: np.ndarray,
        *,
        gpu_memory_limit: int,
        device: str | Device = "cpu",
        page_rows: int = 512,
        max_batch: int = 256,
        nprobe: int = 32,
        rerank: int = 400,
        threads: int = 2,
    ) -> None:
        """Copy the codes to the device.

        Args:
            lists: The lists; of their vectors nothing is read after encoding.
            codes: Their codes.
            matrix_ND: float[N, D] by position, what candidates are scored against; may be memory-mapped.
            gpu_memory_limit: Most bytes this index may hold on the device at any time, temporaries included.
            device: `cpu` or a CUDA device, or the device itself.
            page_rows: Rows a page of a kernel, at least 1.
            max_batch: Queries scored together, at least 1; larger calls are split.
            nprobe: Lists a query looks into unless a call says otherwise.
            rerank: Candidates scored exactly unless a call says otherwise.
            threads: Threads of the host that gather and score candidates.

        Raises:
            DeviceMemoryExceeded: The codes do not fit the limit; `StreamedIndex` does with less.
            ValueError: A number is out of its bounds, or the parts do not belong together.
        """
        if min(page_rows, max_batch, nprobe, rerank, threads) < 1:
            raise ValueError("page_rows, max_batch, nprobe, rerank and threads must be at least 1")
        if matrix_ND.shape != (lists.num_rows, lists.dim) or len(codes.bits_NB) != lists.num_rows:
            raise ValueError(
                f"a matrix of shape {matrix_ND.shape} and {len(codes.bits_NB)} codes do not belong to "
                f"{lists.num_rows} rows of {lists.dim} numbers"
            )
        self._ids_N = lists.ids_N
        self._matrix_ND = matrix_ND
        self._nprobe, self._rerank, self._max_batch = nprobe, rerank, max_batch
        self._pages = Pages.cut(lists.offsets_C1, page_rows)
        self._device = device_named(device) if isinstance(device, str) else device
        self._where = self._device.where
        self.memory = DeviceMemory(gpu_memory_limit)
        self._centroids_CD = self._resident("centroids", lists.centroids_CD)
        self._rotation_DW = self._resident("the rotation", codes.rotation_DW)
        self._bits_NB = self._resident("codes (StreamedIndex needs less)", codes.bits_NB)
        self._factor_N = self._resident("factors (StreamedIndex needs less)", codes.factor_N)
        width = codes.rotation_DW.shape[1]
        self._workspace = Workspace(
            min(_MAX_WORKSPACE_BYTES, self.memory.free_bytes),
            CodeScorer.row_temporary_bytes(width),
            page_rows,
            width,
            self._device.batched,
        )
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="rerank")
        self._lock = threading.Lock()

    def _resident(self, purpose: str, array: np.ndarray) -> torch.Tensor:
        host = torch.from_numpy(array)
        return self.memory.empty(purpose, tuple(array.shape), host.dtype, self._where).copy_(host)

    @property
    def num_rows(self) -> int:
        """Return the vectors held."""
        return len(self._ids_N)

    @property
    def dim(self) -> int:
        """Return the numbers a vector."""
        return self._matrix_ND.shape[1]

    @property
    def resident_bytes(self) -> int:
        """Return the device memory held between searches."""
        return self.memory.used_bytes

    def search(
        self,
        queries_QD: np.ndarray,
        k: int,
        keep_N: np.ndarray | None = None,
        *,
        nprobe: int | np.ndarray | None = None,
        rerank: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return float32[Q, k] exact scores and int64[Q, k] positions, best first, lower positions first.

        Score -inf and position -1 where fewer than k were found.

        Args:
            queries_QD: float32[Q, D], unit vectors.
            k: Rows wanted, at least 1.
            keep_N: bool[N] by position, rows that may be returned; None for all.
            nprobe: Lists a query looks into, one number for all or int64[Q].
            rerank: Candidates scored exactly; at least k are.

        Raises:
            InvalidVector: Queries of another dimension, NaN or infinity.
            ValueError: `k` below 1, or `keep_N` of another length.
            DeviceMemoryExceeded: The limit leaves no room for the candidates of one query.
        """
        queries_QD = checked_queries(queries_QD, self.dim, k, keep_N, self.num_rows)
        num_reranked = max(k, rerank or self._rerank)
        probes_Q = probes_of(nprobe, self._nprobe, len(self._centroids_CD), len(queries_QD))
        kept_N = None if keep_N is None else keep_N[self._ids_N]
        found = [(np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64))]
        batch = self._workspace.batch(num_reranked, self._query_bytes(num_reranked), self._max_batch)
        for start in range(0, len(queries_QD), batch):
            block_QD = queries_QD[start : start + batch]
            with self._lock:
                rows_QX = self._candidates(block_QD, num_reranked, probes_Q[start : start + batch], kept_N)
            found.append(self._exact(block_QD, rows_QX, k))
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def close(self) -> None:
        """Give the device's memory back; the index cannot be used after."""
        with self._lock:
            self._workers.shutdown()
            self._device.close()
            empty = torch.empty(0)
            self._centroids_CD = self._rotation_DW = self._bits_NB = self._factor_N = empty

    def _query_bytes(self, num_reranked: int) -> int:
        """Return what a query holds in its batch: itself, turned, centroid scores, best keys."""
        return (
            4 * (self.dim + 3 * self._rotation_DW.shape[1] + 3 * len(self._centroids_CD)) + 32 * num_reranked
        )

    def _candidates(
        self, queries_QD: np.ndarray, num_reranked: int, probes_Q: np.ndarray, kept_N: np.ndarray | None
    ) -> np.ndarray:
        """Return int64[Q, X], rows of the lists with the best estimates, in no order; -1 fills up."""
        num_queries, query_bytes = len(queries_QD), self._query_bytes(num_reranked)
        size = self._workspace.tile(num_reranked, num_queries, query_bytes)
        fixed_bytes = num_queries * query_bytes
        with self.memory.holding("a batch of queries and a kernel", fixed_bytes + size.num_bytes):
            queries = torch.from_numpy(queries_QD).to(self._where)
            centroid_QC = queries @ self._centroids_CD.T
            probes_QN = centroid_QC.topk(int(probes_Q.max()), dim=1).indices.cpu().numpy()
            probes_QN = first_probes(probes_QN, probes_Q)
            scorer = CodeScorer(
                self._pages, self._bits_NB, self._factor_N, queries @ self._rotation_DW, centroid_QC
            )
            wanted_P = None if kept_N is None else self._pages.holding(kept_N)
            inverted = invert(probes_QN, self._pages, wanted_P)
            shape = (num_queries, num_reranked)
            best_QX = torch.full(shape, EMPTY, dtype=torch.int64, device=self._where)
            places = np.arange(len(inverted.page_W))
            score_pages(scorer, inverted, places, self._pages, best_QX, kept_N, size)
            return unpack(best_QX.cpu().numpy())[1]

    def _exact(self, queries_QD: np.ndarray, rows_QX: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best of each query's candidates by exact score."""
        num_queries, num_reranked = rows_QX.shape
        per_worker = max(1, _RERANK_BYTES // (num_reranked * self.dim * 4))
        edges = [*range(0, num_queries, per_worker), num_queries]

        def some(edge: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
            block = slice(*edge)
            rows = rows_QX[block]
            positions = np.where(rows >= 0, self._ids_N[rows], -1).astype(np.int64)
            vectors = np.take(self._matrix_ND, positions.clip(0), axis=0).astype(np.float32, copy=False)
            scores = np.einsum("qxd,qd->qx", vectors, queries_QD[block])
            scores = np.where(positions >= 0, scores, np.float32(-np.inf))
            order = np.lexsort((positions, -scores), axis=1)[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

        parts = list(self._workers.map(some, pairwise(edges)))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
