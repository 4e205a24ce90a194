"""Many fast steps over an index whose encoders dawdle, fail and die: is any search older than the bound?

The judge does not ask the index. The first number of every vector is the step of the weights that made it, so
the best score of a query for that number tells how old the searched vectors are.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from training.index.encoder_pool import EncoderPool
from training.index.encoder_supervisor import ThreadEncoderPool
from training.index.refresher import Refresher, versions_folder
from training.index.schedule import RefreshConfig
from training.index.sharded_search import ShardedSearch, local_shards

_DIM = 16
_NUM_QUERIES = 4
_K = 4


@dataclass(frozen=True, slots=True)
class CampaignConfig:
    """What is run, and what goes wrong."""

    num_steps: int = 10_000
    """Steps."""
    step_s: float = 0.005
    """Seconds that a step would train; slept, so that encoders have the cores."""
    refresh: RefreshConfig = field(
        default_factory=lambda: RefreshConfig("async", interval_steps=200, delay_steps=150)
    )
    """When versions are made."""
    num_rows: int = 2_000
    """Passages."""
    block_rows: int = 256
    """Passages of a block."""
    num_shards: int = 2
    """Shards in the trainer's process."""
    pool: Literal["threads", "ray"] = "threads"
    """Where encoders run; in `ray` a death ends a process."""
    num_encoders: int = 3
    """Encoders."""
    slow_share: float = 0.1
    """Share of blocks that take `slow_s` longer."""
    slow_s: float = 0.1
    """Seconds that a slow block loses."""
    death_share: float = 0.02
    """Share of blocks at which the encoder dies; a failure in `threads`."""
    timeout_s: float = 120.0
    """Longest wait for a version."""


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """What the judge saw."""

    steps: int
    """Steps taken, each with one search."""
    violations: int
    """Searches whose vectors were older than the bound, or newer than the weights."""
    off_plan: int
    """Searches whose vectors were not those of the planned snapshot."""
    max_staleness: int
    """Oldest vectors seen, in updates."""
    bound: int
    """Largest age allowed."""
    refreshes: int
    """Versions activated after the first."""
    blocks_again: int
    """Blocks that were encoded again because an encoder died, failed or dawdled."""
    stall_share: float
    """Seconds that the trainer waited for an index after step 0, over all seconds after it."""
    total_s: float
    """Seconds after step 0."""


class FaultyEncoder:
    """Vectors that carry the step of their weights, from an encoder with bad luck."""

    def __init__(self, step: int, config: CampaignConfig) -> None:
        """Take the weights of a step."""
        self._step = step
        self._config = config
        self._luck = random.Random(f"{step} {os.getpid()} {time.monotonic_ns()}")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), 16]; may take long, fail, or end its process."""
        if self._luck.random() < self._config.slow_share:
            time.sleep(self._config.slow_s)
        if self._step and self._luck.random() < self._config.death_share:
            if self._config.pool == "ray":
                os._exit(1)
            raise RuntimeError("this encoder died")
        rows_ND = np.zeros((len(texts), _DIM), dtype=np.float32)
        rows_ND[:, 0] = self._step
        return rows_ND


@dataclass(frozen=True, slots=True)
class LoadFaulty:
    """Loads `FaultyEncoder` from a snapshot; picklable."""

    config: CampaignConfig
    """Its luck."""

    def __call__(self, folder: Path) -> FaultyEncoder:
        """Return the encoder of a snapshot."""
        return FaultyEncoder(json.loads((folder / "step.json").read_text()), self.config)


def run_campaign(folder: Path, config: CampaignConfig) -> CampaignResult:
    """Take all steps and return what was seen; with pool `ray`, Ray must be running.

    Args:
        folder: Empty; holds the index.
        config: What is run.
    """
    texts = [str(row) for row in range(config.num_rows)]
    shards = local_shards(versions_folder(folder), config.num_rows, config.block_rows, config.num_shards)
    refresher = Refresher(
        config.refresh,
        folder,
        texts,
        _DIM,
        ShardedSearch(shards),
        _pool(texts, config),
        dtype="float32",
        block_rows=config.block_rows,
        timeout_s=config.timeout_s,
    )
    queries_QD = np.zeros((_NUM_QUERIES, _DIM), dtype=np.float32)
    queries_QD[:, 0] = 1.0
    bound = refresher.plan.max_staleness
    violations = off_plan = oldest = refreshes = 0
    began_s, first_stall_s = time.monotonic(), 0.0
    try:
        for step in range(config.num_steps):
            report = refresher.before_step(step, _saver(step))
            _, scores_QK = refresher.search(queries_QD, _K, step)
            ages_QK = step - scores_QK
            violations += bool((ages_QK < 0).any() or (ages_QK > bound).any())
            off_plan += bool((ages_QK != refresher.plan.staleness(step)).any())
            oldest = max(oldest, int(ages_QK.max()))
            refreshes += report.activated is not None and step > 0
            if step == 0:
                # Nothing can hide the first encoding; it is not what the schedule is judged by.
                began_s, first_stall_s = time.monotonic(), refresher.counters.stall_s
            time.sleep(config.step_s)
            if report.activated is not None:
                refresher.collect([])
    finally:
        refresher.close()
    total_s = time.monotonic() - began_s
    return CampaignResult(
        steps=config.num_steps,
        violations=violations + refresher.counters.violations,
        off_plan=off_plan,
        max_staleness=oldest,
        bound=bound,
        refreshes=refreshes,
        blocks_again=refresher.counters.blocks_again,
        stall_share=(refresher.counters.stall_s - first_stall_s) / total_s,
        total_s=total_s,
    )


def _saver(step: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "step.json").write_text(json.dumps(step))

    return save


def _pool(texts: Sequence[str], config: CampaignConfig) -> EncoderPool:
    if config.pool == "threads":
        return ThreadEncoderPool(texts, LoadFaulty(config), config.num_encoders)
    from training.index.ray_clients import RayEncoderPool

    return RayEncoderPool(texts, LoadFaulty(config), config.block_rows, config.num_encoders)
