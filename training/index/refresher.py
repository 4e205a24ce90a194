"""The index of a training run: snapshots, encoding beside the trainer, activation on time, search, resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from training.index.encoding import ProbeEncoder
from training.index.refresh_report import ProbeReport, RefreshCounters, RefresherState, RefreshReport
from training.index.schedule import RefreshPlan

SaveWeights = Callable[[Path], None]
"""Writes the passage encoder of the moment into an empty folder, for `LoadEncoder` to read."""


class Refresher:
    """What a trainer calls: `before_step` before each step, `search` within it, `state` at a checkpoint."""

    plan: RefreshPlan
    """All versions decided upon."""
    counters: RefreshCounters
    """Sums since the start of the process."""

    def before_step(
        self, step: int, save_weights: SaveWeights, probe_encoder: ProbeEncoder | None = None
    ) -> RefreshReport:
        """Snapshot, encode and activate what the plan says for a step; waits where an index is late.

        Args:
            step: Optimizer updates done, growing by one; the last one may be repeated after a resume.
            save_weights: Called when a snapshot is due, on the rank that drives.
            probe_encoder: The weights of the moment; needed where the interval adapts.

        Raises:
            IndexNotReady: A version did not come within the timeout; the message names what lacks.
        """
        raise NotImplementedError

    def search(self, queries_QD: np.ndarray, k: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of each query in the version of a step.

        Args:
            queries_QD: float32[num_queries, dim], finite.
            k: Rows wanted, at least 1.
            step: The step that searches.

        Returns:
            Rows int64[num_queries, min(k, num_rows)] and scores float32 of the same shape, best first, equal
            scores by row.

        Raises:
            IndexNotReady: A shard did not answer in time.
            StalenessViolated: The version is older than the bound.
        """
        raise NotImplementedError

    def probe(self, step: int, encoder: ProbeEncoder) -> ProbeReport:
        """Return how far the version of a step has drifted from the weights of the moment."""
        raise NotImplementedError

    def follow(self, plan: RefreshPlan) -> None:
        """Take over the plan of the rank that drives, after it decided upon an interval."""
        raise NotImplementedError

    def state(self) -> RefresherState:
        """Return what a checkpoint keeps; `to_json` makes JSON values of it."""
        raise NotImplementedError

    def restore(self, state: RefresherState) -> None:
        """Go on from a checkpoint: keep finished blocks, encode missing ones from the pinned weights.

        Raises:
            CheckpointError: It belongs to another plan or corpus, or pinned weights are missing or damaged.
        """
        raise NotImplementedError

    def collect(self, kept: Iterable[RefresherState]) -> Sequence[int]:
        """Delete versions that neither this run nor a kept checkpoint needs; return their numbers."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop encoders and shards that this object started."""
        raise NotImplementedError
