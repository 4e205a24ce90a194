"""Time budgets of the optional stages of a search: a stage that would not fit is skipped before it begins.

Work in a thread cannot be taken back, so under load a stage that is stopped half-way costs as much as one
that finishes. What a stage costs per candidate is therefore learned from its latest runs.
"""

from __future__ import annotations

import threading

OUT_OF_TIME = "time budget"
"""`Stage.skipped` of a stage that would have taken too long."""

_SMOOTHING = 0.2
_FORGET = 0.9
"""What a skip leaves of the learned cost: after a burst of load a stage is soon tried again."""


class StageCosts:
    """The learned cost of each stage; one object serves all searches of a searcher."""

    def __init__(self) -> None:
        """Start with every stage free: the first run of each is always tried."""
        self._lock = threading.Lock()
        self._ms_per_item: dict[str, float] = {}

    def fits(self, stage: str, num_items: int, budget_ms: float) -> bool:
        """Return whether a stage over this many candidates is expected to end within the budget."""
        with self._lock:
            cost = self._ms_per_item.get(stage, 0.0)
            if budget_ms > 0 and cost * num_items <= budget_ms:
                return True
            self._ms_per_item[stage] = cost * _FORGET
            return False

    def spent(self, stage: str, num_items: int, ms: float) -> None:
        """Record what a stage took."""
        if num_items < 1:
            return
        with self._lock:
            cost = ms / num_items
            known = self._ms_per_item.get(stage)
            self._ms_per_item[stage] = cost if known is None else known + _SMOOTHING * (cost - known)
