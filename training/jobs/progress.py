"""How far a job is, for people: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from training.index.daemon_thread import DaemonThread
from training.jobs.log_lines import log_lines
from training.joint.run_log import METRICS, TIMINGS

_PLAIN_EVERY_S = 10.0
_POLL_S = 0.5
_WINDOW = 20
"""Steps over which speed and stall are averaged."""
_COLUMNS = (
    ("loss", "loss", ".4f"),
    ("recall", "search/recall", ".3f"),
    ("reward", "reward", ".3f"),
    ("index age", "index/staleness", ".0f"),
)
"""Title, figure and format of what is shown where a job has it."""


class Progress:
    """Told of each step, shows the newest; a context manager."""

    def __init__(
        self,
        name: str,
        num_steps: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            name: Of the job.
            num_steps: Of the whole job; 0 where it takes none.
            console: Where it is shown; None takes standard error.
            clock: Seconds that only grow.
        """
        self._name, self._num_steps, self._clock = name, num_steps, clock
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._told: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW + 1)
        """When each step ended, its number and its stall in seconds."""
        self._printed_s: float | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Show a step.

        Args:
            step: Its number, from 0.
            figures: Metrics and timings of it, whatever the job has.
        """
        now_s = self._clock()
        self._told.append((now_s, step, figures.get("time/stall_s", 0.0)))
        cells = self.cells(step, figures)
        if self._live is not None:
            self._live.update(_row(cells))
        elif self._is_due(now_s, step):
            self._printed_s = now_s
            self._console.print("  ".join(f"{title} {text}" for title, text in cells), highlight=False)

    def cells(self, step: int, figures: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return what is shown of a step, as title and text."""
        of = f"/{self._num_steps:,}" if self._num_steps else ""
        cells = [("job", self._name), ("step", f"{step + 1:,}{of}")]
        cells += [(title, format(figures[key], form)) for title, key, form in _COLUMNS if key in figures]
        step_s = self._step_s()
        if "questions_per_s" in figures:
            cells.append(("questions/s", f"{figures['questions_per_s']:.1f}"))
        if step_s is not None:
            if "time/stall_s" in figures:
                stall_s = sum(stall for _, _, stall in list(self._told)[1:])
                cells.append(("stall", f"{stall_s / (self._told[-1][0] - self._told[0][0]):.0%}"))
            if self._num_steps:
                cells.append(("left", duration((self._num_steps - step - 1) * step_s)))
        return cells

    def _step_s(self) -> float | None:
        """Return the mean seconds of a step over the window, None before the second one."""
        if len(self._told) < 2:
            return None
        (began_s, first, _), (now_s, last, _) = self._told[0], self._told[-1]
        return (now_s - began_s) / (last - first) if last > first and now_s > began_s else None

    def _is_due(self, now_s: float, step: int) -> bool:
        is_last = step + 1 == self._num_steps
        return is_last or self._printed_s is None or now_s - self._printed_s >= _PLAIN_EVERY_S


class LogFollower:
    """Reads the logs that a job writes in its folder, from any process that sees the folder."""

    def __init__(self, out: Path) -> None:
        """Begin at what is there already."""
        self._out = out
        self._seen = _last(out)

    def new_steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the number and figures of the newest step, when it is one that was not told yet."""
        newest = _last(self._out)
        if newest is not None and newest != self._seen:
            self._seen = newest
            yield int(newest["step"]), {name: value for name, value in newest.items() if name != "step"}


@contextmanager
def following(out: Path, progress: Progress) -> Iterator[None]:
    """Show what a job writes in its folder while the block runs elsewhere's work."""
    follower, is_over = LogFollower(out), threading.Event()

    def follow() -> None:
        while not is_over.wait(_POLL_S):
            for step, figures in follower.new_steps():
                progress.step(step, figures)

    thread = DaemonThread("training-progress")
    following = thread.submit(follow)
    try:
        yield
    finally:
        is_over.set()
        following.result()
        for step, figures in follower.new_steps():
            progress.step(step, figures)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _row(cells: list[tuple[str, str]]) -> Table:
    table = Table(*(title for title, _ in cells), box=None, pad_edge=False)
    table.add_row(*(text for _, text in cells))
    return table


def _last(out: Path) -> dict[str, float] | None:
    """Return the figures of the newest step that both logs have."""
    timings = {line["step"]: line for line in log_lines(out / TIMINGS, is_tail=True)}
    for line in reversed(log_lines(out / METRICS, is_tail=True)):
        if line["step"] in timings:
            return line | timings[line["step"]]
    return None
