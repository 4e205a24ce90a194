"""Chunks' KV in memory and on disk, each within a number of bytes.

Reads look in memory, then on disk; what is found on disk comes back to memory. Writes go to memory at once
and to disk from a thread, so that no step of the engine waits for a disk. A file that cannot be read back is
deleted and counted, and the chunk counts as not there: it is computed again.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from pathlib import Path

from serving.chunk_kv.chunk import ChunkKV, CorruptChunk
from serving.chunk_kv.chunk_file import (
    PARTIAL_SUFFIX,
    SUFFIX,
    num_tokens_in,
    read_chunk,
    write_chunk,
)
from serving.chunk_kv.eviction import BoundedEntries
from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import KVCodec

logger = logging.getLogger(__name__)

MAX_PENDING_WRITES = 64
"""Chunks that may wait for the disk; one more stays in memory alone."""


class ChunkStore:
    """Keeps chunks' KV by key; may be used from several threads.

    Args:
        memory_bytes: Most bytes in memory, 0 or more.
        folder: Where files go, made when it is missing; what it holds from before is there again. None keeps
            nothing on disk.
        disk_bytes: Most bytes on disk, 0 or more.
        codec: How files are written; those of any codec are read.

    Raises:
        OSError: The folder cannot be made or read.
    """

    def __init__(
        self,
        memory_bytes: int,
        folder: Path | None = None,
        disk_bytes: int = 0,
        codec: KVCodec = "none",
    ) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[str, ChunkKV] = {}
        self._memory = BoundedEntries(memory_bytes)
        self._disk = BoundedEntries(disk_bytes if folder else 0)
        self._stats = StoreStats()
        self._folder = folder
        self._codec: KVCodec = codec
        self._writes: queue.Queue[tuple[str, ChunkKV] | None] = queue.Queue(MAX_PENDING_WRITES)
        self._writer: threading.Thread | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._find_files(folder)
            self._writer = threading.Thread(target=self._write_all, name="graft-chunk-writer", daemon=True)
            self._writer.start()

    def tier(self, key: str) -> Tier | None:
        """Return where a chunk would be read from, without reading it; None where it is not."""
        with self._lock:
            if key in self._memory:
                return "memory"
            return "disk" if key in self._disk else None

    def get(self, key: str) -> ChunkKV | None:
        """Return a chunk, or None where it is not there or its file was not what had been written."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._memory.use(key)
                self._count(memory_hits=1)
                return chunk
            on_disk = key in self._disk
        chunk = self._read(key) if on_disk else None
        with self._lock:
            if chunk is None:
                self._count(misses=1)
                return None
            self._count(disk_hits=1)
            if key in self._disk:
                self._disk.use(key)
            self._keep_in_memory(key, chunk)
        return chunk

    def put(self, key: str, chunk: ChunkKV) -> bool:
        """Keep a chunk, in place of one of the same key; returns whether memory took it.

        Args:
            key: From `serving.chunk_kv.chunk_key`.
            chunk: Tensors on the host that nobody writes to again.
        """
        with self._lock:
            is_kept = self._keep_in_memory(key, chunk)
            if not is_kept:
                self._count(not_admitted=1)
        if self._writer is not None and is_kept:
            try:
                self._writes.put_nowait((key, chunk))
            except queue.Full:
                logger.warning("the disk is slower than chunks are computed: one stays in memory alone")
        return is_kept

    def stats(self) -> StoreStats:
        """Return what is held and what was counted since the store was made."""
        with self._lock:
            return replace(
                self._stats,
                memory_chunks=len(self._memory),
                memory_bytes=self._memory.num_bytes,
                disk_chunks=len(self._disk),
                disk_bytes=self._disk.num_bytes,
            )

    def flush(self) -> None:
        """Wait until everything put so far is on disk, or was refused by it."""
        if self._writer is not None:
            self._writes.join()

    def close(self) -> None:
        """Write what waits for the disk and end the thread; safe to call twice."""
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join()
            self._writer = None

    # What follows is called with the lock held, `_read` and `_write_all` apart.

    def _keep_in_memory(self, key: str, chunk: ChunkKV) -> bool:
        self._drop_from_memory(key)
        leaving = self._memory.add(key, chunk.num_bytes, float(chunk.num_tokens))
        if leaving is None:
            return False
        for other in leaving:
            del self._chunks[other]
        self._count(evicted=len(leaving))
        self._chunks[key] = chunk
        return True

    def _drop_from_memory(self, key: str) -> None:
        self._memory.remove(key)
        self._chunks.pop(key, None)

    def _drop_file(self, key: str) -> None:
        self._disk.remove(key)
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a chunk's file cannot be deleted: %s", error)
            self._count(disk_errors=1)

    def _count(self, **numbers: int) -> None:
        self._stats = replace(
            self._stats, **{name: getattr(self._stats, name) + number for name, number in numbers.items()}
        )

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}{SUFFIX}"

    def _find_files(self, folder: Path) -> None:
        """Take in the files of an earlier store, the newest last, and delete what was not finished."""
        found: list[tuple[float, str, int, int]] = []
        for path in folder.iterdir():
            try:
                if path.name.endswith(PARTIAL_SUFFIX):
                    path.unlink()
                elif path.suffix == SUFFIX:
                    num_tokens, status = num_tokens_in(path), path.stat()
                    found.append((status.st_mtime, path.stem, status.st_size, num_tokens))
            except CorruptChunk as error:
                logger.warning("a chunk's file is not what was written: %s", error)
                self._count(corrupt=1)
                self._drop_file(path.stem)
            except OSError as error:
                logger.warning("a file in the chunks' folder can be neither read nor deleted: %s", error)
                self._count(disk_errors=1)
        for _, key, num_bytes, num_tokens in sorted(found):
            self._admit_file(key, num_bytes, float(num_tokens))

    def _admit_file(self, key: str, num_bytes: int, cost: float) -> None:
        self._disk.remove(key)
        leaving = self._disk.add(key, num_bytes, cost)
        for other in [key] if leaving is None else leaving:
            self._drop_file(other)
        self._count(evicted=len(leaving or ()))

    def _read(self, key: str) -> ChunkKV | None:
        try:
            return read_chunk(self._path(key), key)
        except CorruptChunk as error:
            logger.warning("a chunk's file is not what was written, it is computed again: %s", error)
            counted = {"corrupt": 1}
        except OSError as error:
            logger.warning("a chunk's file cannot be read: %s", error)
            counted = {"disk_errors": 1}
        with self._lock:
            self._count(**counted)
            self._drop_file(key)
        return None

    def _write_all(self) -> None:
        while (item := self._writes.get()) is not None:
            key, chunk = item
            try:
                num_bytes = write_chunk(self._path(key), key, chunk, self._codec)
                with self._lock:
                    self._admit_file(key, num_bytes, float(chunk.num_tokens))
            except OSError as error:
                logger.warning("a chunk cannot be kept on disk: %s", error)
                with self._lock:
                    self._count(disk_errors=1)
            finally:
                self._writes.task_done()
        self._writes.task_done()
