"""What a run may spend. Running out is a result (`stop_reason`), never an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one run; the first meter to run out routes to one final, tool-free answer."""

    max_steps: int = 12
    """Supersteps that may search or write; the few that end a run come on top. Sets LangGraph's limit."""
    max_model_calls: int = 8
    """Generations."""
    max_retrievals: int = 8
    """Searches."""
    max_prompt_tokens: int = 32_768
    """Prompt tokens over all generations."""
    max_completion_tokens: int = 1_024
    """Generated tokens over all generations."""
    deadline_s: float = 120.0
    """Wall time of the run in seconds."""
    max_parallel: int = 4
    """Nodes of one superstep that run at once."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "max_model_calls",
            "max_retrievals",
            "max_prompt_tokens",
            "max_completion_tokens",
            "max_parallel",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"budget.{name} must be >= 1, got {getattr(self, name)}")
        if self.deadline_s <= 0:
            raise ValueError(f"budget.deadline_s must be > 0, got {self.deadline_s}")
