"""How the work of a rank ended, as it travels between processes: reading it loads no model library."""

from __future__ import annotations

from dataclasses import dataclass

from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class KindOutcome:
    """How a job's work ended on this rank."""

    steps: int
    """Optimizer steps done in all."""
    is_complete: bool
    """Whether it reached its end; if not it was told to stop and can be resumed."""
    message: str = ""
    """What a person should know."""


@dataclass(frozen=True, slots=True)
class RankEnd:
    """What a rank tells the driver, by way of Ray Train's controller."""

    outcome: KindOutcome | None
    """How its work ended; None after an error."""
    error: TrainingError | None = None
    """What a restart would only repeat."""
    is_preempted: bool = False
    """Whether it ended because a node is about to be taken away."""
