"""One shard of the index that is searched while training: exact, two versions at a time, never too old.

Shapes: Q queries, D dimensions, N rows of a block, K best rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.errors import IndexNotReady, NumericsError, StalenessViolated
from training.index.encoding import RowRange
from training.index.top_rows import MAX_ROWS, TopRows
from training.index.version_rows import VersionRows, VersionSpec

MAX_RESIDENT = 2
"""Versions that a shard has room for: the one in use, and the next."""


@dataclass(frozen=True, slots=True)
class _Resident:
    spec: VersionSpec
    blocks: list[tuple[RowRange, torch.Tensor]]


class TrainIndexShard:
    """Rows [first_row, last_row) of the versions in a folder."""

    def __init__(self, folder: Path, first_row: int, last_row: int, device: str = "cpu") -> None:
        """Start without a version.

        Args:
            folder: Holds the versions; may be written by other processes.
            first_row: First row of the shard.
            last_row: One past its last row; blocks that reach beyond the shard are read, not returned.
            device: `cpu` maps the files; any other holds both versions in its memory, as they are stored.
        """
        if not 0 <= first_row < last_row <= MAX_ROWS:
            raise ValueError(f"a shard holds rows within 0 and {MAX_ROWS}, got [{first_row}, {last_row})")
        self._folder = folder
        self._first_row = first_row
        self._last_row = last_row
        self._device = torch.device(device)
        self._resident: dict[int, _Resident] = {}
        self._loading = threading.Lock()

    @property
    def resident(self) -> tuple[int, ...]:
        """Return the versions that can be searched, in order."""
        return tuple(sorted(self._resident))

    def load(self, number: int) -> None:
        """Verify a finished version and map it; one that is mapped and unchanged on disk is left alone.

        Raises:
            IndexNotReady: It is not finished, or holds fewer rows than the shard is to serve.
            DamagedBlocks: Blocks of it are torn or foreign.
            ValueError: Two other versions are resident.
        """
        with self._loading:
            rows = VersionRows.finished(self._folder, number)
            held = self._resident.get(number)
            if held is not None and held.spec == rows.spec:
                return
            if held is None and len(self._resident) >= MAX_RESIDENT:
                raise ValueError(
                    f"versions {self.resident} are resident, at most {MAX_RESIDENT} may be: `keep` fewer "
                    f"before loading {number}"
                )
            if self._last_row > rows.spec.num_rows:
                raise IndexNotReady(
                    f"index version {number} has {rows.spec.num_rows} rows, the shard serves rows up to "
                    f"{self._last_row}: it was encoded from another corpus"
                )
            blocks = rows.open(self._first_row, self._last_row)
            tensors = [(at, torch.from_numpy(block_ND).to(self._device)) for at, block_ND in blocks]
            self._resident[number] = _Resident(rows.spec, tensors)

    def keep(self, numbers: Sequence[int]) -> None:
        """Let go of every other version; searches under way keep theirs until they end."""
        with self._loading:
            self._resident = {number: held for number, held in self._resident.items() if number in numbers}

    def search(
        self,
        number: int,
        step: int,
        snapshot_step: int,
        max_staleness: int,
        queries_QD: np.ndarray,
        k: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of each query, by exact inner products in float32.

        Every block is scored whole and then cut to the shard, so a score has the same bits in any sharding.

        Args:
            number: Version to search.
            step: Optimizer updates that the passage tower has seen.
            snapshot_step: Updates that the version's weights have seen, as the plan says.
            max_staleness: Largest lag that the run allows.
            queries_QD: float32[Q, D], finite, Q at least 1.
            k: Rows wanted, at least 1.

        Returns:
            Rows int64[Q, min(k, rows of the shard)], counted over the whole corpus, and their scores float32,
            best first, equal scores by lower row.

        Raises:
            StalenessViolated: The version is older than `max_staleness`, or not what the plan takes it for.
            IndexNotReady: The version is not resident.
            NumericsError: A query is NaN or infinite.
            ValueError: Shapes or `k` are wrong.
        """
        held = self._resident.get(number)
        if held is None:
            raise IndexNotReady(f"index version {number} is not loaded; resident: {self.resident}")
        _assert_fresh(held.spec, step, snapshot_step, max_staleness)
        if queries_QD.ndim != 2 or queries_QD.shape[1] != held.spec.dim or k < 1:
            raise ValueError(
                f"queries must be [Q, {held.spec.dim}] and k at least 1, got {queries_QD.shape} and k={k}"
            )
        if not np.isfinite(queries_QD).all():
            raise NumericsError("a query vector is NaN or infinite: the query tower has diverged")
        # The trainer may call this under its own autocast, which would round scores to half precision.
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            rows_QK, scores_QK = self._top(held, torch.tensor(queries_QD, dtype=torch.float32), k)
            return rows_QK.cpu().numpy(), scores_QK.cpu().numpy()

    def _top(self, held: _Resident, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        queries_QD = queries_QD.to(self._device)
        top = TopRows(len(queries_QD), k, self._device)
        for rows, stored_ND in held.blocks:
            scores_QN = queries_QD @ stored_ND.float().T
            first, last = max(rows.first, self._first_row), min(rows.last, self._last_row)
            cut_QN = scores_QN[:, first - rows.first : last - rows.first]
            top.add(cut_QN, torch.arange(first, last, device=self._device))
        return top.result()


def _assert_fresh(spec: VersionSpec, step: int, snapshot_step: int, max_staleness: int) -> None:
    if spec.step != snapshot_step:
        raise StalenessViolated(
            f"index version {spec.number} holds weights of step {spec.step}, the plan says {snapshot_step}: "
            "its folder belongs to another run"
        )
    if not 0 <= step - spec.step <= max_staleness:
        raise StalenessViolated(
            f"step {step} would search vectors of step {spec.step}, {step - spec.step} updates away; the "
            f"bound of this run is 0 to {max_staleness}"
        )
