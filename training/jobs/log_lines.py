"""The lines of a run's logs, also while they are being written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_TAIL_BYTES = 65_536


def log_lines(path: Path, *, is_tail: bool = False) -> list[dict[str, Any]]:
    """Return the whole lines of a log, oldest first; none where there is no file.

    Args:
        path: JSON lines, each with a `step`.
        is_tail: Whether the newest lines are enough, for logs of any length.
    """
    try:
        with path.open("rb") as file:
            if is_tail:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _TAIL_BYTES))
            raw = file.read().splitlines()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in raw:
        try:
            value = json.loads(line)
        except ValueError:  # Cut off at the beginning, or still being written.
            continue
        if isinstance(value, dict) and "step" in value:
            found.append(value)
    return found
