"""The index of a training run: snapshots, encoding beside the trainer, activation on time, search, resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from training.errors import CheckpointError, ConfigError, StalenessViolated
from training.index.drift_probe import DriftProbe
from training.index.encoder_pool import EncoderPool
from training.index.encoding import ProbeEncoder, corpus_fingerprint
from training.index.refresh_report import ProbeReport, RefreshCounters, RefresherState, RefreshReport
from training.index.schedule import RefreshConfig, RefreshPlan
from training.index.search_call import SearchCall
from training.index.sharded_search import ShardedSearch
from training.index.snapshot_weights import SaveWeights
from training.index.version_maker import IndexLayout, VersionMaker
from training.index.version_rows import DamagedBlocks, RowsDtype, VersionRows

_REPAIRS = 3
"""How often damaged blocks of one version are encoded again before the disk is called unreliable."""


def versions_folder(folder: Path) -> Path:
    """Return where a refresher keeps vectors; shards read there."""
    return folder / "versions"


class Refresher:
    """What a trainer calls: `before_step` before each step, `search` within it, `state` at a checkpoint.

    One rank drives: it has the encoders, saves weights and decides. The others follow: they search by the
    same plan and load what the driver finished. Every rank calls `before_step`, the followers after the
    driver returned from it; where the plan is adaptive they `follow` its plan before their next step.
    """

    plan: RefreshPlan
    """All versions decided upon."""
    counters: RefreshCounters
    """Sums since the start of the process."""

    def __init__(
        self,
        config: RefreshConfig,
        folder: Path,
        texts: Sequence[str],
        dim: int,
        shards: ShardedSearch,
        pool: EncoderPool | None,
        *,
        dtype: RowsDtype = "float16",
        block_rows: int = 2048,
        probe_queries: Sequence[str] = (),
        timeout_s: float = 600.0,
    ) -> None:
        """Start without a version; `before_step(0)` or `restore` brings the first.

        Args:
            config: When versions are made.
            folder: Of this run, kept over its restarts; holds vectors and snapshot weights.
            texts: The corpus; a row is a position in it.
            dim: Columns of its vectors.
            shards: Over `versions_folder(folder)`, with the same `block_rows`.
            pool: Encoders, on the rank that drives; None on the others. The refresher closes it.
            dtype: How vectors are stored.
            block_rows: Rows that are encoded, stored and scored together, at least 1.
            probe_queries: For `probe` and adaptive intervals.
            timeout_s: Longest wait for a version.
        """
        if not texts or dim < 1 or block_rows < 1:
            raise ConfigError(
                "an index needs texts, dimensions and rows in a block, got "
                f"{len(texts)} texts, {dim=}, {block_rows=}"
            )
        if config.is_adaptive and not probe_queries:
            raise ConfigError("an adaptive interval needs probe_queries, or it would only grow")
        self.plan = RefreshPlan.start(config)
        self.counters = RefreshCounters()
        self._folder = versions_folder(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layout = IndexLayout(corpus_fingerprint(texts), len(texts), dim, dtype, block_rows)
        self._maker = (
            None
            if pool is None
            else VersionMaker(self._folder, folder / "weights", self._layout, pool, timeout_s)
        )
        self._shards = shards
        self._probe = DriftProbe(config, texts, probe_queries)
        self._step = -1
        self._active: int | None = None
        self._pending: int | None = None
        self._is_preloading = False

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
            ConfigError: The interval adapts and there is no `probe_encoder`.
            ValueError: Steps were left out.
        """
        if step not in (self._step, self._step + 1):
            raise ValueError(f"step {step} follows step {self._step}: every step is prepared, in order")
        began = (self.counters.snapshot_s, self.counters.stall_s)
        before, probe, snapshotted = self._active, None, None
        if self._maker is None:
            self._catch_up(step)
        else:
            # A version of before may end its wait at the very step that snapshots the next one.
            probe = self._activate_if_due(self._maker, step, probe_encoder)
            snapshotted = self._snapshot_if_due(self._maker, step, save_weights)
            probe = self._activate_if_due(self._maker, step, probe_encoder) or probe
            self._preload()
            self.counters.blocks_again = self._maker.num_again
        self._step = step
        return RefreshReport(
            step=step,
            version=self.plan.active(step),
            staleness=self.plan.staleness(step),
            snapshotted=snapshotted,
            activated=self._active if self._active != before else None,
            snapshot_s=self.counters.snapshot_s - began[0],
            stall_s=self.counters.stall_s - began[1],
            num_pending=self._num_pending(),
            probe=probe,
        )

    def search(self, queries_QD: np.ndarray, k: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of each query in the version of a step.

        Args:
            queries_QD: float32[num_queries, dim], finite.
            k: Rows wanted, at least 1.
            step: The step that searches, prepared by `before_step`.

        Returns:
            Rows int64[num_queries, min(k, num_rows)] and scores float32 of the same shape, best first, equal
            scores by row.

        Raises:
            IndexNotReady: A shard did not answer in time.
            StalenessViolated: The version is older than the bound.
            ValueError: The step was not prepared.
        """
        number = self.plan.active(step)
        if number != self._active:
            raise ValueError(f"step {step} searches index version {number}: call before_step({step}) first")
        try:
            found = self._search(number, self.plan.tower_step(step), queries_QD, k)
        except StalenessViolated:
            self.counters.violations += 1
            raise
        except DamagedBlocks:
            # A shard that came back after a crash verifies what it maps.
            if self._maker is None:
                raise
            self._load(number)
            found = self._search(number, self.plan.tower_step(step), queries_QD, k)
        self.counters.searches += 1
        return found

    def probe(self, step: int, encoder: ProbeEncoder) -> ProbeReport:
        """Return how far the version of a step has drifted from the weights of the moment."""
        return self._measure(self.plan.active(step), self.plan.tower_step(step), encoder)

    def follow(self, plan: RefreshPlan) -> None:
        """Take over the plan of the rank that drives, after it decided upon an interval.

        Raises:
            ValueError: It contradicts what this rank has followed.
        """
        known = self.plan.decided_versions
        if plan.config != self.plan.config or plan.decided_versions[: len(known)] != known:
            raise ValueError("the plan to follow is not a continuation of this rank's: ranks have diverged")
        self.plan = plan

    def state(self) -> RefresherState:
        """Return what a checkpoint keeps; `to_json` makes JSON values of it."""
        wanted = [number for number in (self._active, self._pending) if number is not None]
        hashes = {} if self._maker is None else self._maker.weights_hashes
        return RefresherState(
            plan=self.plan,
            step=self._step,
            active=self._active,
            pending=self._pending,
            weights_hashes={number: hashes[number] for number in wanted if number in hashes},
            index_fingerprint=self._layout.fingerprint,
        )

    def restore(self, state: RefresherState) -> None:
        """Go on from a checkpoint: keep finished blocks, encode missing ones from the pinned weights.

        Args:
            state: Written by the rank that drives; every rank restores the same one, the followers after the
                driver returned from it.

        Raises:
            CheckpointError: It belongs to another plan or corpus, or pinned weights are missing or damaged.
            IndexNotReady: The version in use could not be completed in time.
        """
        if state.plan.config != self.plan.config or state.index_fingerprint != self._layout.fingerprint:
            raise CheckpointError(
                "the checkpoint's index has another refresh configuration, corpus, dimension or number "
                "format: resume with the configuration the run began with"
            )
        self.plan, self._step = state.plan, state.step
        self._active, self._pending, self._is_preloading = None, None, False
        self._shards.keep(state.versions)
        if self._maker is not None:
            for number in state.versions:
                snapshot_step = self.plan.version(number).snapshot_step
                self._maker.resume(number, snapshot_step, state.weights_hashes[number])
        if state.active is not None:
            with self._stalling():
                if self._maker is not None:
                    self._maker.complete(state.active)
                self._load(state.active)
        self._active = state.active
        self._pending = None if self._maker is None else state.pending

    def collect(self, kept: Iterable[RefresherState]) -> list[int]:
        """Delete versions that neither this run nor a kept checkpoint needs; return their numbers.

        Args:
            kept: States of all checkpoints from which the run may be resumed.
        """
        needed = set(self.state().versions).union(*(state.versions for state in kept))
        return [] if self._maker is None else self._maker.collect(needed)

    def close(self) -> None:
        """Stop the encoders; what is on disk stays."""
        if self._maker is not None:
            self._maker.close()

    def _activate_if_due(
        self, maker: VersionMaker, step: int, encoder: ProbeEncoder | None
    ) -> ProbeReport | None:
        number = self.plan.active(step)
        if number == self._active or number != self._pending:
            return None
        decides = self.plan.config.is_adaptive and number == self.plan.decided_versions[-1].number
        if decides and encoder is None:
            raise ConfigError("an adaptive interval needs probe_encoder in before_step at every activation")
        outgoing, probe = self._active, None
        with self._stalling():
            maker.complete(number)
            if outgoing is None:
                # Shards that outlived a trainer may hold versions of its last life.
                self._shards.keep([number])
            self._load(number)
        if decides and encoder is not None and outgoing is not None:
            # As of the step before, the last one that was allowed to search it.
            probe = self._measure(outgoing, self.plan.tower_step(step) - 1, encoder)
            self.plan = self.plan.decided(step, probe.overlap)
        self._active, self._pending = number, None
        self._shards.keep([number])
        return probe

    def _snapshot_if_due(self, maker: VersionMaker, step: int, save_weights: SaveWeights) -> int | None:
        number = self.plan.snapshot_due(step)
        if number is None or number in (self._active, self._pending):
            return None
        began_s = time.monotonic()
        maker.snapshot(number, step, save_weights)
        self.counters.snapshot_s += time.monotonic() - began_s
        self._pending, self._is_preloading = number, False
        return number

    def _catch_up(self, step: int) -> None:
        """Load what the driver has activated."""
        number = self.plan.active(step)
        if number == self._active:
            return
        with self._stalling():
            self._shards.keep([n for n in (self._active, number) if n is not None])
            self._shards.load(number)
            self._shards.keep([number])
        self._active = number

    def _preload(self) -> None:
        """Let shards load the next version once it is finished, so that its activation need not wait."""
        if self._pending is not None and not self._is_preloading and self._num_pending() == 0:
            self._is_preloading = True
            self._shards.start_loading(self._pending)

    def _num_pending(self) -> int:
        if self._pending is None or self._maker is None:
            return 0
        return self._maker.num_pending(self._pending)

    def _load(self, number: int) -> None:
        """Load a version, encoding damaged blocks again on the rank that can."""
        for _ in range(_REPAIRS):
            try:
                self._shards.load(number)
                return
            except DamagedBlocks as damaged:
                if self._maker is None:
                    raise
                self._maker.repair(number, len(damaged.ranges))
        self._shards.load(number)

    def _search(
        self, number: int, tower_step: int, queries_QD: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        snapshot_step = self.plan.version(number).snapshot_step
        call = SearchCall(number, tower_step, snapshot_step, self.plan.max_staleness, queries_QD, k)
        return self._shards.search(call)

    def _measure(self, number: int, tower_step: int, encoder: ProbeEncoder) -> ProbeReport:
        rows = VersionRows.finished(self._folder, number)
        return self._probe.measure(
            rows, encoder, lambda queries_QD, k: self._search(number, tower_step, queries_QD, k)[0]
        )

    @contextlib.contextmanager
    def _stalling(self) -> Iterator[None]:
        """Count the seconds of a wait."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.counters.stall_s += time.monotonic() - began_s
