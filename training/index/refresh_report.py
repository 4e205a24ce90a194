"""What a refresher tells the trainer: reports of steps, probes, counters, and its state for checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.errors import CheckpointError
from training.index.schedule import RefreshPlan


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How far the searched vectors have drifted from the weights now training."""

    cosine: float
    """Mean cosine of fresh and stored vectors over the probe passages, in [-1, 1]."""
    overlap: float
    """Mean share of the first `probe_k` ranks that stale and fresh ranking have in common, in [0, 1]; 1
    without probe queries."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What `before_step` did."""

    step: int
    """Optimizer updates done before it."""
    version: int
    """Version that this step searches."""
    staleness: int
    """Updates by which its vectors lag the passage tower."""
    snapshotted: int | None = None
    """Version whose weights were saved now."""
    activated: int | None = None
    """Version that this step is the first to search; the trainer broadcasts `Refresher.plan` when it is set
    and the plan is adaptive."""
    snapshot_s: float = 0.0
    """Seconds of saving weights."""
    stall_s: float = 0.0
    """Seconds of waiting for encoders and shards."""
    num_pending: int = 0
    """Blocks of the next version that are not encoded yet."""
    probe: ProbeReport | None = None
    """Drift of the outgoing version, where the interval adapts and a version was activated."""


@dataclass(slots=True)
class RefreshCounters:
    """Sums over a run."""

    searches: int = 0
    """Calls of `search` that returned."""
    violations: int = 0
    """Searches refused because they would have broken the bound; never expected."""
    snapshot_s: float = 0.0
    """Seconds of saving weights."""
    stall_s: float = 0.0
    """Seconds in which the trainer waited for an index."""
    blocks_again: int = 0
    """Blocks encoded more than once: lost with an encoder, or damaged on disk."""


@dataclass(frozen=True, slots=True)
class RefresherState:
    """What a checkpoint keeps of the index; vectors and snapshot weights stay where they are."""

    plan: RefreshPlan
    """All versions, decided ones included."""
    step: int
    """Last step prepared; -1 before the first."""
    active: int | None
    """Version searched by that step."""
    pending: int | None
    """Version snapshotted, but not searched yet."""
    weights_hashes: dict[int, str] = field(default_factory=dict)
    """Hash of the snapshot weights of both, by version."""
    index_fingerprint: str = ""
    """Names corpus, dimensions, number format and block size."""

    @property
    def versions(self) -> tuple[int, ...]:
        """Return the versions that a run resumed from here needs."""
        return tuple(number for number in (self.active, self.pending) if number is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        hashes = {str(number): text for number, text in self.weights_hashes.items()}
        return {
            "plan": self.plan.to_json(),
            "step": self.step,
            "active": self.active,
            "pending": self.pending,
            "weights_hashes": hashes,
            "index_fingerprint": self.index_fingerprint,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RefresherState:
        """Return the state that `to_json` wrote; raises CheckpointError where it is none."""
        try:
            state = cls(
                plan=RefreshPlan.from_json(values["plan"]),
                step=int(values["step"]),
                active=values["active"],
                pending=values["pending"],
                weights_hashes={int(number): text for number, text in values["weights_hashes"].items()},
                index_fingerprint=values["index_fingerprint"],
            )
            if not state.weights_hashes.keys() >= set(state.versions):
                raise ValueError("it names no weights: checkpoint the state of the rank that drives")
            return state
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the index state of the checkpoint cannot be read: {error!r}") from error
