"""The connections to one shard's SQLite file: one that writes, and as many that read as are asked for.

Commits are durable when they return (WAL, synchronous=FULL). Readers each have a connection of their own and
see one moment, so neither side waits for the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from retrieval.errors import IndexUnavailable, StorageFull
from retrieval.truth.schema import connect, prepare

_WRITE_CACHE_BYTES = 32 * 1024 * 1024
_READ_CACHE_BYTES = 16 * 1024 * 1024
_MAX_IDLE_READERS = 8
_MIN_FREE_BYTES = 1024 * 1024


class Database:
    """One shard's file. All methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            IndexUnavailable: It is damaged or not ours.
            StorageFull: The disk has no room for it.
        """
        self.path = path
        self._write_lock = threading.Lock()
        self._idle_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            self._writer = connect(path, cache_bytes=_WRITE_CACHE_BYTES)
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error
        try:
            prepare(self._writer, path)
        except sqlite3.DatabaseError as error:
            self._writer.close()
            raise self._translated(error) from error
        except BaseException:
            self._writer.close()
            raise

    def close(self) -> None:
        """Close the file; what was acknowledged is durable already."""
        with self._write_lock:
            with self._idle_lock:
                self._closed = True
                idle, self._idle = self._idle, []
            for connection in idle:
                connection.close()
            self._writer.close()

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Yield the writing connection inside a transaction; it is durable when the block ends.

        Args:
            durable: False for what may be lost with the machine's power, though never with the process; it is
                durable with the next write that is.

        Raises:
            IndexUnavailable: The file cannot be used; nothing was stored.
            StorageFull: The disk has no room; nothing was stored.
        """
        with self._write_lock:
            self._check_open()
            db = self._writer
            try:
                if not durable:
                    db.execute("PRAGMA synchronous=NORMAL")
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                raise self._translated(error) from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if not durable:
                    db.execute("PRAGMA synchronous=FULL")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of one's own that sees one moment."""
        db = self._borrow()
        try:
            db.execute("BEGIN")
            yield db
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error
        finally:
            db.rollback()
            self._give_back(db)

    def backup(self, path: Path) -> None:
        """Write a copy of this moment to `path`: whole and durable, or not there at all.

        Raises:
            StorageFull: The disk has no room for it.
            IndexUnavailable: It cannot be written.
        """
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            with self.read() as source:
                _copy(source, partial)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        except OSError as error:
            raise IndexUnavailable(
                f"the backup '{path}' cannot be written ({error.strerror}); check its disk and rights"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _borrow(self) -> sqlite3.Connection:
        with self._idle_lock:
            self._check_open()
            if self._idle:
                return self._idle.pop()
        try:
            return connect(self.path, cache_bytes=_READ_CACHE_BYTES)
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._idle_lock:
            if not self._closed and len(self._idle) < _MAX_IDLE_READERS:
                self._idle.append(db)
                return
        db.close()

    def _check_open(self) -> None:
        if self._closed:
            raise IndexUnavailable(f"the shard in '{self.path.parent}' is closed; open it again")

    def _translated(self, error: sqlite3.DatabaseError) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        free = shutil.disk_usage(self.path.parent).free
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and free < _MIN_FREE_BYTES):
            return StorageFull(
                f"the disk that holds '{self.path.parent}' is full ({free:,} bytes free); nothing was "
                "stored. Free some space and try again"
            )
        return IndexUnavailable(
            f"the shard file '{self.path}' cannot be used ({error}); check the disk, restore a backup, "
            "or use another data folder"
        )


def _copy(source: sqlite3.Connection, path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as target:
            source.backup(target)
            # One file to copy: no write-ahead log beside it.
            target.execute("PRAGMA journal_mode=DELETE").fetchall()
    except sqlite3.DatabaseError as error:
        free = shutil.disk_usage(path.parent).free
        raise StorageFull(
            f"the backup '{path}' could not be written ({error}; {free:,} bytes free): nothing was kept of "
            "it. Free some space or choose another disk"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
