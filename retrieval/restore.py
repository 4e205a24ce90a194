"""Putting a snapshot of a whole index in place of an index that is not open."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from retrieval.errors import IndexUnavailable
from retrieval.shard import shard_snapshot
from retrieval.sharding.durable_json import read_json
from retrieval.sharding.placement import Placement, write_placement
from retrieval.truth.folder_lock import FolderLock

INDEX_FILE = "index.json"
"""Written last into a snapshot of several shards: names how many there are."""
FORMAT = 1


def shard_folder(snapshot: Path, shard: int) -> Path:
    """Return the folder of one shard in a snapshot of several."""
    return snapshot / f"shard-{shard}"


def restore_index(source: Path, folder: Path) -> Path | None:
    """Open nothing, but put what `IndexAdmin.snapshot` wrote into `source` into `folder`.

    The snapshot is checked and copied whole before anything of the index moves.

    Returns:
        Where the index that was in `folder` is now; None when there was none.

    Raises:
        IndexUnavailable: `source` is torn or no snapshot, or a process has the index open.
        StorageFull: The disk has no room; the index is as it was.
    """
    num_shards = _num_shards(source)
    new = folder.with_name(f"{folder.name}.restored")
    shutil.rmtree(new, ignore_errors=True)
    try:
        if num_shards is None:
            shard_snapshot.restore(new, source)
        else:
            placement = Placement(num_shards)
            for shard in range(num_shards):
                shard_snapshot.restore(placement.folder(new, shard, 0), shard_folder(source, shard))
            write_placement(new, placement)
        return _swap(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _num_shards(source: Path) -> int | None:
    """Return the shards of a snapshot; None for one of a single shard, which has no list of them."""
    values = read_json(source / INDEX_FILE)
    if values is None:
        if any(source.glob("shard-*")):
            raise IndexUnavailable(
                f"the snapshot in '{source}' is torn: '{INDEX_FILE}', which is written last, is missing; "
                "use another snapshot"
            )
        return None
    if values.get("format") != FORMAT or not isinstance(values.get("num_shards"), int):
        raise IndexUnavailable(f"'{source / INDEX_FILE}' is of no snapshot this program can read")
    return values["num_shards"]


def _swap(new: Path, folder: Path) -> Path | None:
    """Put `new` in the place of `folder`, which is kept beside it."""
    if not folder.exists():
        new.rename(folder)
        return None
    lock = FolderLock(folder)  # Nobody may be writing what is moved away.
    try:
        kept = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(kept)
        new.rename(folder)
    finally:
        lock.release()
    return kept
