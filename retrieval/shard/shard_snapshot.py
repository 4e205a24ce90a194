"""Copies of a whole shard: the store at one moment and the base segments beside it, sealed by a manifest.

A snapshot folder is one published segment folder: every file is listed with its size and checksum, so a torn
or edited one is refused, not half restored. Segments in it reflect the store's log or a prefix of it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from retrieval.errors import IndexUnavailable, StorageFull
from retrieval.shard.segments_on_disk import CURRENT_NAME, MANIFEST_NAME, Manifest, SegmentFolders
from retrieval.truth.store import DATABASE_NAME, Store

_KIND = "shard snapshot"
_SEGMENTS = "segments"


def write(store: Store, segments: Mapping[int, Path], folder: Path) -> None:
    """Write a copy of a shard into a new folder: whole and durable, or not there at all.

    Args:
        store: The shard's store.
        segments: By version number, the folder of its base segment; none may be removed meanwhile.
        folder: Must be missing or empty.

    Raises:
        StorageFull: The disk has no room; nothing is left of the attempt.
        IndexUnavailable: The folder is not empty or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise IndexUnavailable(f"the snapshot folder '{folder}' is not empty; give a new one")

    def fill(hidden: Path) -> Manifest:
        for number, segment in segments.items():
            parent = hidden / _SEGMENTS / str(number)
            _copy(segment, parent / segment.name)
            (parent / CURRENT_NAME).write_text(segment.name, encoding="utf-8")
        # After the segments: a segment may reflect a prefix of the log, never more than it.
        store.backup(hidden / DATABASE_NAME)
        return Manifest("", store.seq(), "", 0, 0, _KIND)

    SegmentFolders(folder).publish(fill)


def restore(folder: Path, source: Path) -> None:
    """Put what `write` wrote into `source` into a new folder.

    Raises:
        IndexUnavailable: `source` is torn or no snapshot, or `folder` is not empty or cannot be written.
        StorageFull: The disk has no room; nothing is left of the attempt.
    """
    found = SegmentFolders(source).current(
        lambda manifest: None if manifest.kind == _KIND else f"it is no {_KIND}"
    )
    if found is None:
        raise IndexUnavailable(
            f"'{source}' holds no whole snapshot of a shard; see the log for what is wrong with it"
        )
    if folder.exists() and any(folder.iterdir()):
        raise IndexUnavailable(f"the folder '{folder}' is not empty; restore into a new one")
    hidden = folder.with_name(f".{folder.name}.restoring-{os.getpid()}")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.parent.mkdir(parents=True, exist_ok=True)
        _copy(found[0], hidden)
        (hidden / MANIFEST_NAME).unlink()
        _sync_all(hidden)
        if folder.exists():
            folder.rmdir()
        os.rename(hidden, folder)
        _sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"the disk that holds '{folder}' is full; nothing was restored: free some space and try again"
            ) from error
        raise IndexUnavailable(
            f"the snapshot cannot be restored to '{folder}' ({error.strerror or error}); check its rights"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
