"""What happens while a platform starts: one value per stage, so that no minute is silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of starting, ingesting or stopping, as it begins or ends."""

    name: str
    """ray, index, embedder, generator, library, server."""
    message: str
    """What is being done, or what came of it."""
    done_s: float | None = None
    """Seconds it took; None as it begins."""


OnStage = Callable[[Stage], None]
"""Called with every stage; must return quickly."""


class StageDone:
    """Lets the work inside `stage` say what came of it."""

    def __init__(self, message: str) -> None:
        self.message = message
        """Shown when the stage ends."""


@contextmanager
def stage(on_stage: OnStage, name: str, message: str) -> Iterator[StageDone]:
    """Report a stage as it begins and, unless it fails, as it ends."""
    on_stage(Stage(name, message))
    began_s = time.monotonic()
    done = StageDone(message)
    yield done
    on_stage(Stage(name, done.message, time.monotonic() - began_s))
