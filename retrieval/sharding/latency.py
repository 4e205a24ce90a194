"""How long a call usually takes, so that a slow one can be asked for a second time elsewhere."""

from __future__ import annotations

from collections import deque

_WINDOW = 256
_MIN_SAMPLES = 20
_SHARE = 0.95
_UNKNOWN_S = 1.0
"""Patience while too few durations are known: the first calls load what later ones find in memory."""
_CREDIT_PER_CALL = 0.1
_MAX_CREDIT = 5.0


class Latency:
    """The latest durations of one kind of call, and a budget of second calls.

    Hedging at the 95th percentile repeats one call in twenty. The budget keeps it near one in ten when
    everything is slow at once: a second call would then only add to the load.

    Source: Dean and Barroso, "The Tail at Scale", CACM 2013.
    """

    def __init__(self, min_hedge_s: float) -> None:
        """Start empty.

        Args:
            min_hedge_s: A call is never repeated before this long.
        """
        self._min_hedge_s = min_hedge_s
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._credit = _MAX_CREDIT

    def add(self, seconds: float) -> None:
        """Record the duration of a call that was answered."""
        self._seconds.append(seconds)
        self._credit = min(self._credit + _CREDIT_PER_CALL, _MAX_CREDIT)

    def hedge_after_s(self) -> float:
        """Return after how long a call should be repeated elsewhere."""
        if len(self._seconds) < _MIN_SAMPLES:
            return max(_UNKNOWN_S, self._min_hedge_s)
        ordered = sorted(self._seconds)
        return max(ordered[int(_SHARE * len(ordered))], self._min_hedge_s)

    def take_hedge(self) -> bool:
        """Return whether a second call is within the budget, and spend it."""
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
