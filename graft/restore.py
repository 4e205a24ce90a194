"""Putting a snapshot in place of the index of a platform that does not run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import StartError
from graft.running import find_running, only_platform

if TYPE_CHECKING:
    from graft.config import GraftConfig


def restore(snapshot: Path, config: GraftConfig) -> Path | None:
    """Put a snapshot in place of the index of the home folder.

    Args:
        snapshot: What `snapshot` wrote; it is checked and copied whole before anything moves.
        config: Names the home folder.

    Returns:
        Where the index that was there is now; None when there was none.

    Raises:
        StartError: A platform runs from the home folder.
        IndexUnavailable: The folder is torn or no snapshot.
        StorageFull: The disk has no room; the index is as it was.
    """
    from retrieval.restore import restore_index

    if (running := find_running(config.home)) is not None:
        raise StartError(f"process {running.pid} serves {config.home}; stop it first with `graft down`")
    with only_platform(config.home):
        return restore_index(snapshot, config.home / "index")
