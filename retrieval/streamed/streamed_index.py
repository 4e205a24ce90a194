"""Exact scores over lists that do not fit the device: they stream through it as a batch wants them.

Only the centroids, a workspace and a slab of page slots live on the device, together at most
`gpu_memory_limit` bytes. A batch is turned inside out (`plan.py`), so that each list crosses the bus at most
once a batch; pages of often asked lists stay (`page_cache.py`); copies run beside scoring (`devices.py`).
On a CPU the same code is the exact reference, with a part of host memory in the place of the device.

Legend: N rows, D dimensions, C lists, Q queries, K rows wanted, S slots, R rows a page.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from retrieval.streamed.device_memory import DeviceMemory, DeviceMemoryExceeded
from retrieval.streamed.devices import Device, Run, device_named
from retrieval.streamed.host_lists import HostLists
from retrieval.streamed.keys import EMPTY, unpack
from retrieval.streamed.page_cache import PageCache
from retrieval.streamed.plan import Inverted, Pace, Pages, Step, invert, schedule
from retrieval.streamed.queries import checked_queries, first_probes, probes_of
from retrieval.streamed.scoring import score_pages, upload
from retrieval.streamed.workspace import TileSize, Workspace

_MAX_WORKSPACE_BYTES = 512 * 2**20
_MAX_GROUP_BYTES = 64 * 2**20
"""A copy this large runs at the bus's full rate; more would only take slots from the cache."""
_LEAST_K = 100
"""Results of one query that any accepted limit has room for."""
_FIRST_PACE = Pace(copy_bytes_per_s=10e9, score_bytes_per_s=100e9)


def _query_bytes(dim: int, k: int) -> int:
    """Return what a query holds while its batch runs: itself, its best keys, their sorting."""
    return 4 * dim + 64 * k


@dataclass(frozen=True, slots=True)
class Traffic:
    """What crossed the bus since an index was opened."""

    bytes_moved: int
    """Bytes of rows copied to the device."""
    pages_moved: int
    """Pages copied."""
    pages_hit: int
    """Pages wanted that were on the device."""


class PageScorer:
    """Inner products with pages of the slab; float16 rows are scored in float32."""

    def __init__(self, slab_SRD: torch.Tensor, queries_QD: torch.Tensor, cache: PageCache) -> None:
        self._slab_SRD = slab_SRD
        self._queries_QD = queries_QD
        self._cache = cache

    def scores(self, page_B: np.ndarray, query_Bq: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Return float32[B, q, num_rows]."""
        slots = self._cache.slot_of_page_P[page_B]
        if len(slots) == 1:
            slot = int(slots[0])
            pages_BRD = self._slab_SRD[slot : slot + 1, :num_rows].float()
        else:
            pages_BRD = self._slab_SRD[upload(slots, self._slab_SRD.device), :num_rows].float()
        return torch.bmm(self._queries_QD[query_Bq], pages_BRD.transpose(1, 2))


class StreamedIndex:
    """Lists in host memory, searched through a device of limited memory."""

    kind = "streamed"

    def __init__(
        self,
        lists: HostLists,
        *,
        gpu_memory_limit: int,
        device: str | Device = "cpu",
        page_rows: int = 512,
        max_batch: int = 256,
        nprobe: int = 32,
    ) -> None:
        """Take the device's memory; nothing is copied yet.

        Args:
            lists: The lists; an array is page-locked for a CUDA device, a memory map is read through buffers.
            gpu_memory_limit: Most bytes this index may hold on the device at any time, temporaries included.
            device: `cpu` (simulated) or a CUDA device, or the device itself.
            page_rows: Rows a page, at least 1; longer lists are cut.
            max_batch: Queries planned together, at least 1; larger calls are split.
            nprobe: Lists a query looks into unless a call says otherwise.

        Raises:
            DeviceMemoryExceeded: The limit is too small for two pages; the message says what is needed.
            ValueError: A number is out of its bounds, or there is no such device.
        """
        if min(page_rows, max_batch, nprobe) < 1:
            raise ValueError(
                f"page_rows, max_batch and nprobe must be at least 1; got {page_rows}, {max_batch}, {nprobe}"
            )
        self._lists = lists
        self._nprobe = nprobe
        self._max_batch = max_batch
        self._pages = Pages.cut(lists.offsets_C1, page_rows)
        self.memory = DeviceMemory(gpu_memory_limit)
        self._device = device_named(device) if isinstance(device, str) else device
        where = self._device.where
        slot_bytes = page_rows * lists.row_bytes
        least_bytes = self.least_memory(lists, page_rows)
        if gpu_memory_limit < least_bytes:
            raise DeviceMemoryExceeded(
                f"{lists.num_lists} centroids, two pages of {page_rows} rows and one query need "
                f"{least_bytes:,} bytes; gpu_memory_limit is {gpu_memory_limit:,}: raise it, or lower "
                "page_rows"
            )
        self._centroids_CD = self.memory.empty("centroids", lists.centroids_CD.shape, torch.float32, where)
        self._centroids_CD.copy_(torch.from_numpy(lists.centroids_CD))
        # Two pages are in flight at least; a quarter of the rest, or what a query needs, is for temporaries.
        room = self.memory.free_bytes - 2 * slot_bytes
        workspace_bytes = min(_MAX_WORKSPACE_BYTES, max(room // 4, room - gpu_memory_limit + least_bytes))
        self._workspace = self._workspace_of(
            lists.dim, lists.row_bytes, page_rows, workspace_bytes, batched=self._device.batched
        )
        num_slots = (self.memory.free_bytes - workspace_bytes) // slot_bytes
        num_slots = min(num_slots, max(2, len(self._pages.list_P)))
        shape = (max(2, num_slots), page_rows, lists.dim)
        dtype = torch.float16 if lists.vectors_ND.dtype == np.float16 else torch.float32
        self._slab_SRD = self.memory.empty(f"a slab of {shape[0]} pages", shape, dtype, where)
        self._group_pages = max(1, min(shape[0] // 4, _MAX_GROUP_BYTES // slot_bytes))
        self._cache = PageCache(self._pages.list_P, lists.num_lists, shape[0])
        self._device.attach(lists.vectors_ND)
        self._pace = _FIRST_PACE
        self._bytes_moved = self._pages_moved = self._pages_hit = 0
        self._lock = threading.Lock()

    @staticmethod
    def _workspace_of(
        dim: int, row_bytes: int, page_rows: int, num_bytes: int, *, batched: bool
    ) -> Workspace:
        # A row of float16 is held as it is and in float32.
        return Workspace(num_bytes, row_bytes + 4 * dim, page_rows, dim, batched)

    @classmethod
    def needed_bytes(cls, num_lists: int, dim: int, row_bytes: int, page_rows: int = 512) -> int:
        """Return the smallest `gpu_memory_limit`: centroids, two pages, and one query with 100 results."""
        workspace = cls._workspace_of(dim, row_bytes, page_rows, 0, batched=False)
        least_bytes = workspace.least_bytes(_LEAST_K, _query_bytes(dim, _LEAST_K))
        return 4 * num_lists * dim + 2 * page_rows * row_bytes + least_bytes

    @classmethod
    def least_memory(cls, lists: HostLists, page_rows: int = 512) -> int:
        """Return `needed_bytes` of lists that are there."""
        return cls.needed_bytes(lists.num_lists, lists.dim, lists.row_bytes, page_rows)

    @property
    def num_rows(self) -> int:
        """Return the vectors held."""
        return self._lists.num_rows

    @property
    def dim(self) -> int:
        """Return the numbers a vector."""
        return self._lists.dim

    @property
    def resident_bytes(self) -> int:
        """Return the device memory held between searches."""
        return self.memory.used_bytes

    @property
    def traffic(self) -> Traffic:
        """Return what crossed the bus so far."""
        return Traffic(self._bytes_moved, self._pages_moved, self._pages_hit)

    def probe(self, queries_QD: np.ndarray, nprobe: int | np.ndarray | None = None) -> np.ndarray:
        """Return int64[Q, any], the lists whose centroids are nearest to each query, nearest first.

        Args:
            queries_QD: float32[Q, D], unit vectors.
            nprobe: Lists wanted, one number for all or int64[Q]; -1 fills up the rows of shorter ones.
        """
        queries_QD = checked_queries(queries_QD, self.dim, 1, None, self.num_rows)
        probes_Q = probes_of(nprobe, self._nprobe, self._lists.num_lists, len(queries_QD))
        wanted = int(probes_Q.max(initial=1))
        found = [np.empty((0, wanted), dtype=np.int64)]
        with self._lock:
            for start in range(0, len(queries_QD), self._probe_batch(wanted)):
                block = queries_QD[start : start + self._probe_batch(wanted)]
                with self.memory.holding("choosing lists", self._probe_bytes(len(block), wanted)):
                    scores_QC = torch.from_numpy(block).to(self._device.where) @ self._centroids_CD.T
                    found.append(scores_QC.topk(wanted, dim=1).indices.cpu().numpy())
        return first_probes(np.concatenate(found), probes_Q)

    def search(
        self,
        queries_QD: np.ndarray,
        k: int,
        keep_N: np.ndarray | None = None,
        *,
        nprobe: int | np.ndarray | None = None,
        probes_QN: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of the lists probed: float32[Q, k] scores and int64[Q, k] positions.

        Exact over those lists, best first; of equal scores the row that comes first in the lists, which among
        equal vectors is the lower position. Score -inf and position -1 where there are fewer than k.

        Args:
            queries_QD: float32[Q, D], unit vectors.
            k: Rows wanted, at least 1.
            keep_N: bool[N] by position, rows that may be returned; None for all.
            nprobe: Lists a query looks into, one number for all or int64[Q].
            probes_QN: int64[Q, any], the lists themselves in place of the nearest; -1 is none.

        Raises:
            InvalidVector: Queries of another dimension, NaN or infinity.
            ValueError: `k` below 1, or `keep_N` of another length.
            DeviceMemoryExceeded: The limit leaves no room for k results of one query.
        """
        queries_QD = checked_queries(queries_QD, self.dim, k, keep_N, self.num_rows)
        if probes_QN is None:
            probes_QN = self.probe(queries_QD, nprobe)
        kept_N = None if keep_N is None else keep_N[self._lists.ids_N]
        keys = [np.empty((0, k), dtype=np.int64)]
        with self._lock:
            batch = self._workspace.batch(k, _query_bytes(self.dim, k), self._max_batch)
            for start in range(0, len(queries_QD), batch):
                block = slice(start, start + batch)
                keys.append(self._batch_keys(queries_QD[block], probes_QN[block], k, kept_N))
        scores_QK, rows_QK = unpack(np.concatenate(keys))
        return scores_QK, np.where(rows_QK >= 0, self._lists.ids_N[rows_QK], -1).astype(np.int64)

    def clear_cache(self) -> None:
        """Forget what is on the device, as after opening."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        """Give the device's memory back; the index cannot be used after."""
        with self._lock:
            self._device.close()
            self._slab_SRD = self._centroids_CD = torch.empty(0)

    def _probe_bytes(self, queries: int, wanted: int) -> int:
        return queries * (4 * self.dim + 4 * self._lists.num_lists + 24 * wanted)

    def _probe_batch(self, wanted: int) -> int:
        return max(1, min(self._max_batch, self._workspace.num_bytes // self._probe_bytes(1, wanted)))

    def _batch_keys(
        self, queries_QD: np.ndarray, probes_QN: np.ndarray, k: int, kept_N: np.ndarray | None
    ) -> np.ndarray:
        """Return int64[Q, k], the best keys of a batch, best first."""
        where, num_queries = self._device.where, len(queries_QD)
        fixed_bytes = num_queries * _query_bytes(self.dim, k)
        with self.memory.holding("a batch of queries", fixed_bytes):
            queries = torch.from_numpy(queries_QD).to(where)
            best_QK = torch.full((num_queries, k), EMPTY, dtype=torch.int64, device=where)
            scorer = PageScorer(self._slab_SRD, queries, self._cache)
            size = self._workspace.tile(k, num_queries, _query_bytes(self.dim, k))
            wanted_P = None if kept_N is None else self._pages.holding(kept_N)
            inverted = invert(probes_QN, self._pages, wanted_P)
            try:
                with self.memory.holding("a kernel", size.num_bytes):
                    self._run(inverted, scorer, best_QK, kept_N, size)
            except BaseException:
                # What the slab holds is no longer known.
                self._cache.clear()
                raise
            return best_QK.sort(dim=1, descending=True).values.cpu().numpy()

    def _run(
        self,
        inverted: Inverted,
        scorer: PageScorer,
        best_QK: torch.Tensor,
        kept_N: np.ndarray | None,
        size: TileSize,
    ) -> None:
        page_W = inverted.page_W
        self._cache.count(inverted.lists, inverted.num_queries)
        resident_W = self._cache.slot_of_page_P[page_W] >= 0
        self._cache.pin(page_W[resident_W])
        steps = schedule(
            inverted,
            self._pages,
            resident_W,
            self._cache.frequency(page_W),
            group_pages=self._group_pages,
            num_slots=self._cache.num_slots,
            pace=self._pace,
            row_bytes=self._lists.row_bytes,
        )
        for step in steps:
            runs = self._runs(page_W[step.copy])
            ticket = self._device.copy_in(runs, self._slab_SRD) if runs else None
            self._device.scoring()
            if len(step.score):
                score_pages(scorer, inverted, step.score, self._pages, best_QK, kept_N, size)
            self._device.computed()
            self._cache.release(page_W[step.score])
            if ticket is not None:
                self._device.wait(ticket)
        self._account(inverted, steps, int(resident_W.sum()))

    def _account(self, inverted: Inverted, steps: list[Step], num_hits: int) -> None:
        length_W = self._pages.length_P[inverted.page_W] * self._lists.row_bytes
        moved = int(sum(length_W[step.copy].sum() for step in steps))
        scored = float((length_W * inverted.count_W).sum())
        copy_s, score_s = self._device.seconds()
        self._pace = self._pace.after((moved, copy_s), (scored, score_s))
        self._bytes_moved += moved
        self._pages_moved += sum(len(step.copy) for step in steps)
        self._pages_hit += num_hits

    def _runs(self, pages: np.ndarray) -> list[Run]:
        """Return the copies that bring pages into slots taken for them; neighbours are one copy."""
        table, page_rows = self._pages, self._pages.page_rows
        slots = self._cache.take(pages)
        runs: list[Run] = []
        for page, slot in zip(pages.tolist(), slots.tolist(), strict=True):
            row, num_rows, slot_row = int(table.start_P[page]), int(table.length_P[page]), slot * page_rows
            last = runs[-1] if runs else None
            if last and last.row + last.num_rows == row and last.slot_row + last.num_rows == slot_row:
                runs[-1] = Run(last.row, last.num_rows + num_rows, last.slot_row)
            else:
                runs.append(Run(row, num_rows, slot_row))
        return runs
