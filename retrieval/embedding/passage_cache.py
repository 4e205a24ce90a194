"""Vectors of passages embedded before, on disk: by model and content, bounded, least recently used dropped.

Off unless `embed_cache_bytes` says how large it may be: vectors of a document that was deleted stay here
until they are pushed out, which a user who must forget should know. Losing the file loses time, nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (
    key BLOB PRIMARY KEY, vector BLOB NOT NULL, codes BLOB NOT NULL,
    num_bytes INTEGER NOT NULL, used_s REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON passages (used_s);
"""
_ROW_BYTES = 120
"""What a row takes besides its vector and codes, both indexes counted."""
_KEEP_SHARE = 0.9
"""Share of the bound that is left after dropping, so that not every write drops."""
_BUSY_S = 10.0
_MAX_KEYS = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedPassage:
    """What the cache holds of a passage."""

    vector_D: np.ndarray
    """float32[dim], L2-normalised."""
    codes: bytes
    """Its token codes; empty where none were asked for."""


class PassageCache:
    """Safe to use from several threads and processes."""

    def __init__(self, connection: sqlite3.Connection, path: Path, max_bytes: int) -> None:
        """Use an open file; `open` is the usual way."""
        self._connection = connection
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, max_bytes: int) -> PassageCache | None:
        """Open the file, made anew where it is damaged; None, logged, where it cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return cls(_connect(path), path, max_bytes)
            except sqlite3.OperationalError:  # Busy, read-only or full: not damaged.
                raise
            except sqlite3.DatabaseError as error:
                log.warning("the cache of vectors '%s' is damaged (%s) and is made anew", path, error)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return cls(_connect(path), path, max_bytes)
        except (OSError, sqlite3.Error) as error:
            log.warning("vectors are not cached in '%s': %s", path, error)
            return None

    @staticmethod
    def key(model_hash: str, codec: str, text: str) -> bytes:
        """Return the key of a passage: its model, the codec of its token codes, and its text."""
        return hashlib.sha256(f"{model_hash}\0{codec}\0{text}".encode("utf-8", "surrogatepass")).digest()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, CachedPassage]:
        """Return what is held of `keys`, now the most recently used."""
        found: dict[bytes, CachedPassage] = {}
        now = time.time()
        with self._transaction():
            for start in range(0, len(keys), _MAX_KEYS):
                part = list(keys[start : start + _MAX_KEYS])
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    f"SELECT key, vector, codes FROM passages WHERE key IN ({marks})", part
                )
                for key, vector, codes in rows:
                    found[key] = CachedPassage(np.frombuffer(vector, np.float32), codes)
            self._connection.executemany(
                "UPDATE passages SET used_s = ? WHERE key = ?", [(now, key) for key in found]
            )
        return found

    def keep(self, passages: Mapping[bytes, CachedPassage]) -> None:
        """Hold these too, dropping the least recently used beyond the bound."""
        now = time.time()
        rows = []
        for key, passage in passages.items():
            vector = np.ascontiguousarray(passage.vector_D, np.float32).tobytes()
            num_bytes = _ROW_BYTES + len(vector) + len(passage.codes)
            rows.append((key, vector, passage.codes, num_bytes, now))
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?, ?)", rows)
            if self._num_bytes() > self._max_bytes:
                self._drop(self._num_bytes() - int(self._max_bytes * _KEEP_SHARE))

    def num_bytes(self) -> int:
        """Return about how many bytes the passages take."""
        with self._lock:
            return self._num_bytes()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done within; a cache that cannot be used is logged and otherwise as if empty."""
        try:
            with self._lock, self._connection:
                yield
        except sqlite3.Error as error:
            log.warning("the cache of vectors '%s' cannot be used now: %s", self._path, error)

    def _num_bytes(self) -> int:
        return self._connection.execute("SELECT COALESCE(SUM(num_bytes), 0) FROM passages").fetchone()[0]

    def _drop(self, num_bytes: int) -> None:
        dropped, keys = 0, []
        for key, size in self._connection.execute("SELECT key, num_bytes FROM passages ORDER BY used_s"):
            keys.append((key,))
            dropped += size
            if dropped >= num_bytes:
                break
        self._connection.executemany("DELETE FROM passages WHERE key = ?", keys)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        connection.execute("SELECT SUM(num_bytes) FROM passages").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
