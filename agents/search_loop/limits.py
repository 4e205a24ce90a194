"""How far a search loop may go; the same numbers bind the served graph and the training rollout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """Limits of one loop; bounds are checked at construction."""

    max_turns: int = 6
    """Turns of the model, the answer included, 1 to 50."""
    max_malformed: int = 2
    """Turns that are no call after which the loop ends, 1 to 50."""
    k_passages: int = 3
    """New passages shown after a search, 1 to 50."""
    max_snippet_chars: int = 1_200
    """Characters shown of a passage that a search found, 40 to 100,000."""
    max_open_chars: int = 6_000
    """Characters shown of a passage that was opened, 40 to 100,000."""
    max_query_chars: int = 300
    """Characters of a query that are searched for, 1 to 100,000."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_turns", 1, 50),
            ("max_malformed", 1, 50),
            ("k_passages", 1, 50),
            ("max_snippet_chars", 40, 100_000),
            ("max_open_chars", 40, 100_000),
            ("max_query_chars", 1, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"search_loop.{name} must be from {low} to {high:,}, got {value:,}")
