"""Whether a generator can answer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

Health = Literal["starting", "ready", "draining", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class GeneratorHealth:
    """Whether a generator can answer."""

    status: Health
    """Where it stands."""
    detail: str = ""
    """Why it failed and what to do; set when status is `failed`."""
    pid: int = field(default_factory=os.getpid)
    """Process the engine is driven from."""
