"""Signals that ask a job to save and end, turned into the one thing every rank looks at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_ASKING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(stop_file: Path) -> Iterator[None]:
    """Make the stop file when SIGTERM or Ctrl-C arrives within the block; the second one ends the process.

    Enter it after `ray.init`, which puts a handler of its own in place. Other threads than the main one
    cannot handle signals: there, the block is plain.

    Args:
        stop_file: See `JobFolder.stop_file`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ASKING}

    def ask(number: int, frame: FrameType | None) -> None:
        stop_file.touch()
        for one in _ASKING:
            signal.signal(one, signal.SIG_DFL if one is signal.SIGTERM else signal.default_int_handler)

    for number in _ASKING:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
