"""One search of the index, as it travels to shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class SearchCall:
    """Arguments of `TrainIndexShard.search`."""

    number: int
    """Version to search."""
    step: int
    """Updates that the passage tower has seen."""
    snapshot_step: int
    """Updates that the version's weights have seen."""
    max_staleness: int
    """Largest lag that the run allows."""
    queries_QD: np.ndarray
    """float32[Q, D]."""
    k: int
    """Rows wanted."""
