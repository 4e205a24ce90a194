"""Which index version answers, as one durable record of every switch.

A switch over several shards has one point of no return: the replacement of this file on the first shard. A
crash before it leaves the version before; after it, whoever opens the shards tells the others (see `switch`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retrieval.errors import IndexUnavailable, InvalidVersion
from retrieval.sharding.durable_json import read_json, write_json
from retrieval.versions import VersionInfo, VersionState

FILE_NAME = "epochs.json"
_FORMAT = 1
_MAX_HISTORY = 1000

Reason = Literal["first", "switch", "rollback"]
"""Why a version began to answer; a rollback undoes the switches since the version answered last."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One switch: from then on this version answers."""

    epoch: int
    """1 for the first; one more with each switch, never used again."""
    version: str
    """Index version that answers."""
    reason: Reason
    """Why."""
    at_s: float
    """Unix time of the switch."""


def versions_before(history: Sequence[Epoch]) -> list[str]:
    """Return the versions that rollbacks lead to, the nearest first.

    That is who answered before the current version, and before that one; what was rolled back is not among
    them, so that a second rollback goes further back instead of forth.

    Args:
        history: Every switch, oldest first.
    """
    line: list[str] = []
    for epoch in history:
        if epoch.reason == "rollback" and epoch.version in line:
            while line[-1] != epoch.version:
                line.pop()
        elif line[-1:] != [epoch.version]:
            line.append(epoch.version)
    current = line[-1:]
    return list(dict.fromkeys(version for version in reversed(line) if [version] != current))


def version_to_go_back_to(history: Sequence[Epoch], versions: Sequence[VersionInfo]) -> str:
    """Return the version that a rollback leads to.

    Args:
        history: Every switch, oldest first.
        versions: Those that are kept, the active one first.

    Raises:
        InvalidVersion: None that is kept answered before.
    """
    kept = {info.version_id for info in versions[1:]}
    for version in versions_before(history):
        if version in kept:
            return version
    raise InvalidVersion(
        f"no version answered before '{versions[0].version_id}' and is still kept (retrieval.keep_versions); "
        f"`switch` to one of those there are: {', '.join(sorted(kept)) or 'none, make one with reindex'}"
    )


def versions_to_collect(history: Sequence[Epoch], versions: Sequence[VersionInfo], keep: int) -> list[str]:
    """Return the retired versions that are not worth keeping for a rollback.

    Those that a rollback leads to are kept first, the nearest first; then those made last. One that an alias
    names stays and does not count.

    Args:
        history: Every switch, oldest first.
        versions: Those that are kept.
        keep: How many retired ones stay.
    """
    line = versions_before(history)
    retired = [info for info in versions if info.state is VersionState.RETIRED and not info.aliases]
    retired.sort(key=lambda info: info.made_s, reverse=True)
    retired.sort(key=lambda info: line.index(info.version_id) if info.version_id in line else len(line))
    return [info.version_id for info in retired[keep:]]


class EpochLedger:
    """The switches of one copy of a shard, newest last; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Read what is in the folder.

        Raises:
            IndexUnavailable: The file is damaged or not ours.
        """
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()
        self._history = self._read()

    @property
    def current(self) -> Epoch | None:
        """Return the newest switch; None before the first."""
        return self._history[-1] if self._history else None

    @property
    def history(self) -> tuple[Epoch, ...]:
        """Return the switches, oldest first; the last thousand are kept."""
        return self._history

    def begin(self, history: Sequence[Epoch]) -> None:
        """Record the switches of the index that a new shard joins, unless it knows some already.

        Raises:
            StorageFull: The disk has no room; nothing is recorded.
        """
        with self._lock:
            if not self._history and history:
                self._write(tuple(history))

    def commit(self, epoch: Epoch) -> None:
        """Record a switch durably; recording the same one again changes nothing.

        Raises:
            InvalidVersion: Another switch has taken this epoch or a later one.
            StorageFull: The disk has no room; the version before goes on answering.
        """
        with self._lock:
            current = self.current
            if current is not None and (epoch.epoch, epoch.version) == (current.epoch, current.version):
                return
            if current is not None and epoch.epoch <= current.epoch:
                raise InvalidVersion(
                    f"epoch {epoch.epoch} is taken: version '{current.version}' answers since epoch "
                    f"{current.epoch}; another switch came first, look at the versions and try again"
                )
            self._write((*self._history, epoch)[-_MAX_HISTORY:])

    def _write(self, history: tuple[Epoch, ...]) -> None:
        write_json(self._path, {"format": _FORMAT, "epochs": [asdict(item) for item in history]})
        self._history = history

    def _read(self) -> tuple[Epoch, ...]:
        values = read_json(self._path)
        if values is None:
            return ()
        try:
            if values["format"] != _FORMAT:
                raise ValueError("another format")
            return tuple(Epoch(**item) for item in values["epochs"])
        except (KeyError, TypeError, ValueError) as error:
            raise IndexUnavailable(
                f"'{self._path}' is no record of switches this program can read ({error}); restore it from "
                "a snapshot, or use the program that made it"
            ) from error
