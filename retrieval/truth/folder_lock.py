"""One process per shard folder: an advisory lock the kernel drops when its holder dies."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from retrieval.errors import IndexUnavailable, StorageFull

_WAIT_S = 10.0  # A killed actor's successor may start before the kernel has reaped it.
_RETRY_S = 0.05


class FolderLock:
    """Holds `folder/lock` until released."""

    def __init__(self, folder: Path) -> None:
        """Create the folder if needed and take the lock.

        Raises:
            IndexUnavailable: Another process holds it, or the folder cannot be used.
            StorageFull: The disk has no room for the folder.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            kind = StorageFull if error.errno == errno.ENOSPC else IndexUnavailable
            raise kind(
                f"the data folder '{folder}' cannot be used ({error.strerror}); check its disk and rights"
            ) from error
        deadline = time.monotonic() + _WAIT_S
        while not _take(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise IndexUnavailable(
                    f"the data folder '{folder}' is in use by process {holder}; stop it or use another folder"
                )
            time.sleep(_RETRY_S)
        os.pwrite(descriptor, f"{os.getpid():<32}".encode(), 0)
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the folder back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _take(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
