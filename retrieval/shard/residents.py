"""The index versions a shard holds in memory, and the thread that compacts them.

Searches take `lock`, then a snapshot, so an index never is ahead of what its reader sees. Opening and
building happen outside it; a new base segment is swapped in under it, once it has followed the log.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from retrieval.admin import SegmentReport
from retrieval.config import RetrievalConfig
from retrieval.errors import UnknownVersion
from retrieval.shard.compaction import BuildStopped, SegmentDiffers, build_segment
from retrieval.shard.segments_on_disk import Manifest, SegmentFolders
from retrieval.shard.version_index import VersionIndex
from retrieval.truth.snapshot import Snapshot
from retrieval.truth.store import Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.vectors.types import CorruptBase

SEGMENTS_FOLDER = "segments"
_RETRY_S = 60.0
_CLOSE_S = 30.0

_log = logging.getLogger(__name__)


class Residents:
    """Opens, keeps, compacts and forgets the indexes of a shard's versions. Thread-safe."""

    def __init__(self, store: Store, folder: Path, config: RetrievalConfig) -> None:
        """Start with none; the segments of versions the store no longer has are removed."""
        self.lock = threading.Lock()
        self._store = store
        self._root = folder / SEGMENTS_FOLDER
        self._config = config
        self._indexes: dict[int, VersionIndex] = {}
        self._num_compactions: Counter[int] = Counter()
        self._open_lock = threading.Lock()
        self._build_lock = threading.Lock()
        self._closing = threading.Event()
        self._due: queue.SimpleQueue[StoredVersion | None] = queue.SimpleQueue()
        self._queued: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._worker = threading.Thread(target=self._work, name="compaction", daemon=True)
        self._worker.start()
        here = {str(version.number) for version in store.stored_versions()}
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if path.is_dir() and path.name.isdigit() and path.name not in here:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Stop compacting; a build under way is given up."""
        self._closing.set()
        self._due.put(None)
        self._worker.join(_CLOSE_S)

    @contextmanager
    def at_one_moment(self, version: StoredVersion) -> Iterator[tuple[VersionIndex, Snapshot]]:
        """Yield a version's index and the snapshot it was brought to; other searches wait meanwhile."""
        self.open(version)
        with self.lock, self._store.snapshot() as snapshot:
            index = self._indexes.get(version.number)
            if index is None:
                raise UnknownVersion(
                    f"index version '{version.version_id}' was dropped while it was searched; use another"
                )
            self._follow(index, snapshot)
            yield index, snapshot
        self._work_if_due(index)

    def open(self, version: StoredVersion) -> None:
        """Have a version in memory, up to date as of now."""
        if version.number in self._indexes:
            return
        with self._open_lock:
            if version.number in self._indexes:
                return
            folders = self._folders(version.number)
            with self._store.snapshot() as snapshot:
                segment = folders.current(lambda manifest: _refusal(manifest, version, snapshot))
                index = self._opened(version, segment)
                index.segment_lost = index.segment is None and not folders.is_empty()
                index.follow(snapshot)
            folders.collect(index.segment[0] if index.segment else None)
            with self.lock:
                self._indexes[version.number] = index
        self._work_if_due(index)

    def reports(self, shard: str) -> list[SegmentReport]:
        """Return what is held of each resident version, as of now."""
        with self.lock, self._store.snapshot() as snapshot:
            for number in set(self._indexes) - {version.number for version in snapshot.versions()}:
                del self._indexes[number]  # Dropped by another copy of the shard.
            for index in list(self._indexes.values()):
                self._follow(index, snapshot)
            return [
                index.report(shard, self._num_compactions[number]) for number, index in self._indexes.items()
            ]

    def forget(self, number: int) -> None:
        """Let go of a version that was dropped, and of its segments."""
        with self._build_lock, self.lock:
            self._indexes.pop(number, None)
            shutil.rmtree(self._root / str(number), ignore_errors=True)

    def compact(self, version: StoredVersion) -> Manifest:
        """Build a new base segment of a version, swap it in and remove the old; return its manifest.

        Raises:
            StorageFull: The disk has no room; the old segment goes on answering.
            IndexUnavailable: The folder cannot be written.
        """
        self.open(version)
        with self._build_lock:
            index = self._indexes.get(version.number)
            with self.lock:
                queries_QD = index.tuning_queries() if index else None
            built = self._built(version, index.segment if index else None, queries_QD)
            fresh = VersionIndex(version, self._config, built)
            if fresh.misplaced:  # What fitted when it was built does not now: not at once again.
                self._not_before[version.number] = time.monotonic() + _RETRY_S
            base_row_id = fresh.base_row_id
            with self._store.snapshot() as snapshot:
                fresh.follow(snapshot)  # Most of the way, while searches go on.
            with self.lock, self._store.snapshot() as snapshot:
                fresh.follow(snapshot)
                self._indexes[version.number] = fresh
                self._num_compactions[version.number] += 1
            self._store.prune_terms(version.number, base_row_id)
            self._folders(version.number).collect(built[0])
            return built[1]

    @contextmanager
    def segments_at_rest(self) -> Iterator[dict[int, Path]]:
        """Yield the folder of each resident version's segment; none is removed meanwhile."""
        with self._build_lock:
            yield {
                number: index.segment[0]
                for number, index in self._indexes.items()
                if index.segment is not None
            }

    def _built(
        self,
        version: StoredVersion,
        before: tuple[Path, Manifest] | None,
        queries_QD: np.ndarray | None,
    ) -> tuple[Path, Manifest]:
        folders = self._folders(version.number)
        stopped = self._closing.is_set
        try:
            return build_segment(self._store, version, folders, self._config, before, stopped, queries_QD)
        except SegmentDiffers as error:
            if before is None:
                raise
            _log.warning("building from the store instead: %s", error)
            return build_segment(self._store, version, folders, self._config, None, stopped, queries_QD)

    def _folders(self, number: int) -> SegmentFolders:
        return SegmentFolders(self._root / str(number))

    def _opened(self, version: StoredVersion, segment: tuple[Path, Manifest] | None) -> VersionIndex:
        if segment is not None:
            try:
                return VersionIndex(version, self._config, segment)
            except (OSError, ValueError, KeyError, CorruptBase) as error:
                _log.warning("ignoring index segment '%s': %s; it will be built again", segment[0], error)
        return VersionIndex(version, self._config)

    def _follow(self, index: VersionIndex, snapshot: Snapshot) -> None:
        try:
            index.follow(snapshot)
        except BaseException:
            # Half-followed is no state to answer from; the next search opens it anew.
            self._indexes.pop(index.version.number, None)
            raise

    def _work_if_due(self, index: VersionIndex) -> None:
        """Have the worker do what is due: a recall check, or a compaction."""
        number = index.version.number
        if number not in self._queued and (index.has_shadow() or self._is_due(index)):
            self._queued.add(number)
            self._due.put(index.version)

    def _is_due(self, index: VersionIndex) -> bool:
        number = index.version.number
        return time.monotonic() >= self._not_before.get(number, 0.0) and index.compaction_reason() is not None

    def _work(self) -> None:
        while (version := self._due.get()) is not None and not self._closing.is_set():
            try:
                index = self._indexes.get(version.number)
                if index is not None and index.has_shadow():
                    with self.lock:
                        index.shadow()
                # Asked again: it may have been done meanwhile at someone's call.
                if index is not None and self._is_due(index):
                    _log.info(
                        "compacting index version '%s': %s", version.version_id, index.compaction_reason()
                    )
                    self.compact(version)
            except (BuildStopped, UnknownVersion):
                continue
            except Exception:
                self._not_before[version.number] = time.monotonic() + _RETRY_S
                _log.exception(
                    "compacting index version '%s' failed; searches go on, the next attempt is in %g s",
                    version.version_id,
                    _RETRY_S,
                )
            finally:
                self._queued.discard(version.number)


def _refusal(manifest: Manifest, version: StoredVersion, snapshot: Snapshot) -> str | None:
    """Return why a segment is not one of this version in this log, or None."""
    if manifest.version_id != version.version_id:
        return f"it is of index version '{manifest.version_id}', not '{version.version_id}'"
    if manifest.dim != version.dim:
        return f"its vectors have {manifest.dim} numbers, not {version.dim}"
    if manifest.seq > snapshot.seq() or manifest.mark != snapshot.mark(manifest.seq):
        return f"it is of another log than this shard's at position {manifest.seq:,}"
    return None
