"""Which index version is searched at which step: a function of the step, never of how fast encoders are.

Weights after `step` optimizer updates are snapshotted before step `step` runs. Version k is snapshotted at
kR and searched from exactly kR + D on, so the index that a step sees lags its weights by at most R + D - 1
updates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from training.errors import CheckpointError, ConfigError

RefreshMode = Literal["frozen", "query_side", "blocking", "async"]

_STRETCH = 2
"""Factor by which an adaptive interval shrinks or grows at one decision."""


@dataclass(frozen=True, slots=True)
class RefreshConfig:
    """When the index is encoded again."""

    mode: RefreshMode = "async"
    """`frozen` and `query_side`: the passage tower does not train, the start index stays exact. `blocking`:
    the trainer waits while the corpus is encoded. `async`: encoders work beside the trainer."""
    interval_steps: int = 500
    """R: steps between snapshots, at least 1; the first interval where it adapts."""
    delay_steps: int = 250
    """Steps from a snapshot to its activation: 1 to the shortest interval in `async`, 0 in `blocking`. Choose
    it so that encoders finish within it; a trainer that gets there first waits."""
    min_interval_steps: int | None = None
    """Shortest interval; set together with `max_interval_steps` to let the interval follow the drift."""
    max_interval_steps: int | None = None
    """Longest interval, which the bound is computed from."""
    early_overlap: float = 0.9
    """Overlap of stale and fresh ranking under which the next interval is halved, in [0, 1]."""
    late_overlap: float = 0.98
    """Overlap above which the next interval is doubled, in [early_overlap, 1]."""
    num_probe_passages: int = 512
    """Passages whose fresh and stored vectors a probe compares."""
    num_probe_queries: int = 128
    """Queries whose stale and fresh ranking a probe compares."""
    probe_k: int = 10
    """Ranks compared, at least 1."""
    probe_depth: int = 20
    """Candidates that a probe scores again with fresh weights, at least `probe_k`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        if self.mode not in ("frozen", "query_side", "blocking", "async"):
            raise ConfigError(f"mode must be frozen, query_side, blocking or async, got {self.mode!r}")
        if self.interval_steps < 1:
            raise ConfigError(f"interval_steps must be at least 1, got {self.interval_steps}")
        if (self.min_interval_steps is None) != (self.max_interval_steps is None):
            raise ConfigError("min_interval_steps and max_interval_steps are set together, or neither is")
        if not 1 <= self.shortest_steps <= self.interval_steps <= self.longest_steps:
            raise ConfigError(
                f"interval_steps={self.interval_steps} must lie within min_interval_steps="
                f"{self.shortest_steps} (at least 1) and max_interval_steps={self.longest_steps}"
            )
        if self.mode == "async" and not 1 <= self.delay_steps <= self.shortest_steps:
            raise ConfigError(
                f"delay_steps={self.delay_steps} must lie within 1 and the shortest interval, "
                f"{self.shortest_steps}: one version is encoded at a time"
            )
        if self.mode == "blocking" and self.delay_steps != 0:
            raise ConfigError(f"blocking activates at once: set delay_steps=0, got {self.delay_steps}")
        if not 0 <= self.early_overlap <= self.late_overlap <= 1:
            raise ConfigError(
                "overlaps must satisfy 0 <= early_overlap <= late_overlap <= 1, got "
                f"{self.early_overlap} and {self.late_overlap}"
            )
        if self.num_probe_passages < 1 or self.num_probe_queries < 1:
            raise ConfigError("num_probe_passages and num_probe_queries must be at least 1")
        if not 1 <= self.probe_k <= self.probe_depth:
            raise ConfigError(f"probe_k={self.probe_k} must lie within 1 and probe_depth={self.probe_depth}")

    @property
    def refreshes(self) -> bool:
        """Return whether the passage tower trains, so that its index ages."""
        return self.mode in ("blocking", "async")

    @property
    def is_adaptive(self) -> bool:
        """Return whether the interval follows the drift."""
        return self.refreshes and self.min_interval_steps is not None

    @property
    def shortest_steps(self) -> int:
        """Return the shortest interval that can be planned."""
        return self.interval_steps if self.min_interval_steps is None else self.min_interval_steps

    @property
    def longest_steps(self) -> int:
        """Return the longest interval that can be planned."""
        return self.interval_steps if self.max_interval_steps is None else self.max_interval_steps

    @property
    def max_staleness(self) -> int:
        """Return the bound: longest interval + delay - 1; 0 where the passage tower does not train."""
        return self.longest_steps + self.delay_steps - 1 if self.refreshes else 0


@dataclass(frozen=True, slots=True)
class PlannedVersion:
    """One version of the index in time."""

    number: int
    """0 for the start index, then counting."""
    snapshot_step: int
    """Optimizer updates that its weights have seen."""
    activation_step: int
    """First step that searches it."""


_START = PlannedVersion(0, 0, 0)


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """All versions of a run; with a fixed interval it never changes, an adaptive one grows at activations."""

    config: RefreshConfig
    """What it follows."""
    decided_versions: tuple[PlannedVersion, ...] = ()
    """Versions after the start index whose interval was decided; empty where the interval is fixed."""

    @classmethod
    def start(cls, config: RefreshConfig) -> RefreshPlan:
        """Return the plan of a run that begins."""
        first = cls._after(_START, config.interval_steps, config.delay_steps)
        return cls(config, (first,) if config.is_adaptive else ())

    @property
    def max_staleness(self) -> int:
        """Return the largest `staleness` of any step."""
        return self.config.max_staleness

    def version(self, number: int) -> PlannedVersion:
        """Return a version by its number.

        Raises:
            ValueError: It is not planned.
        """
        if number == 0:
            return _START
        if self.config.is_adaptive and 0 < number <= len(self.decided_versions):
            return self.decided_versions[number - 1]
        if self.config.refreshes and not self.config.is_adaptive and number > 0:
            snapshot_step = number * self.config.interval_steps
            return PlannedVersion(number, snapshot_step, snapshot_step + self.config.delay_steps)
        raise ValueError(f"version {number} is not planned; decided so far: {len(self.decided_versions)}")

    def snapshot_due(self, step: int) -> int | None:
        """Return the version whose weights are those before step `step` runs, or None."""
        newest = self.snapshotted(step)
        return newest if self.version(newest).snapshot_step == step else None

    def activation_due(self, step: int) -> int | None:
        """Return the version that step `step` is the first to search, or None."""
        active = self.active(step)
        return active if self.version(active).activation_step == step else None

    def active(self, step: int) -> int:
        """Return the version that step `step` searches.

        Args:
            step: Optimizer updates done before it, at least 0.

        Raises:
            ValueError: The step is negative, or lies beyond an activation that was not decided upon.
        """
        if not self._is_regular(step):
            return max((v.number for v in self.decided_versions if v.activation_step <= step), default=0)
        if not self.config.refreshes:
            return 0
        return max(0, (step - self.config.delay_steps) // self.config.interval_steps)

    def snapshotted(self, step: int) -> int:
        """Return the newest version whose weights are known before step `step` runs; raises like `active`."""
        if not self._is_regular(step):
            return max((v.number for v in self.decided_versions if v.snapshot_step <= step), default=0)
        return step // self.config.interval_steps if self.config.refreshes else 0

    def staleness(self, step: int) -> int:
        """Return by how many updates the searched vectors lag the passage tower, 0 to `max_staleness`."""
        return self.tower_step(step) - self.version(self.active(step)).snapshot_step

    def tower_step(self, step: int) -> int:
        """Return the updates of the passage tower before step `step`: none where it does not train."""
        return step if self.config.refreshes else 0

    def decided(self, step: int, overlap: float) -> RefreshPlan:
        """Return the plan with the interval after an activation; the same plan where the interval is fixed.

        Args:
            step: The step of the activation.
            overlap: Share of ranks that the outgoing version and a fresh ranking have in common, in [0, 1].

        Raises:
            ValueError: No undecided version is activated at the step, or the overlap is no share.
        """
        if not self.config.is_adaptive:
            return self
        last = self.decided_versions[-1]
        if step != last.activation_step:
            raise ValueError(
                f"an interval is decided at an activation; the next one is at step {last.activation_step}, "
                f"not {step}"
            )
        if not 0 <= overlap <= 1:
            raise ValueError(f"overlap must lie within 0 and 1, got {overlap}")
        steps = last.snapshot_step - self.version(last.number - 1).snapshot_step
        if overlap < self.config.early_overlap:
            steps = max(self.config.shortest_steps, steps // _STRETCH)
        elif overlap > self.config.late_overlap:
            steps = min(self.config.longest_steps, steps * _STRETCH)
        following = self._after(last, steps, self.config.delay_steps)
        return replace(self, decided_versions=(*self.decided_versions, following))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, for a checkpoint or a message to other ranks."""
        return {"config": asdict(self.config), "decided_versions": [asdict(v) for v in self.decided_versions]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RefreshPlan:
        """Return the plan that `to_json` wrote.

        Raises:
            CheckpointError: The values are not those of a plan.
        """
        try:
            versions = tuple(PlannedVersion(**version) for version in values["decided_versions"])
            return cls(RefreshConfig(**values["config"]), versions)
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"the refresh plan of the checkpoint cannot be read: {error}") from error

    def _is_regular(self, step: int) -> bool:
        if step < 0:
            raise ValueError(f"a step is at least 0, got {step}")
        if not self.config.is_adaptive:
            return True
        if step > self.decided_versions[-1].activation_step:
            raise ValueError(
                f"step {step} lies beyond the activation at {self.decided_versions[-1].activation_step}, "
                "after which no interval was decided: call `decided` there, and `follow` on the other ranks"
            )
        return False

    @staticmethod
    def _after(version: PlannedVersion, steps: int, delay_steps: int) -> PlannedVersion:
        snapshot_step = version.snapshot_step + steps
        return PlannedVersion(version.number + 1, snapshot_step, snapshot_step + delay_steps)
