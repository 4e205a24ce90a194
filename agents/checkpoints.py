"""Threads: conversations kept in one SQLite file through LangGraph's checkpointer.

Only values of the types named here are ever constructed from the file (strict msgpack), whatever else it may
name. Each tenant's threads live under keys no other tenant's request can form. Of a thread only the newest
checkpoint is kept: it holds every turn, and older ones would make the file grow with the square of the turns.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import aiosqlite
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from agents.errors import InvalidThread, UnknownThread
from agents.search_loop.loop import Hop
from agents.state import ChatTurn, Citation, ThreadInfo
from retrieval.types import Hit
from serving.types import TokenUsage

CHECKPOINTED_TYPES = (ChatTurn, Citation, Hit, Hop, TokenUsage)
"""Our types that a checkpoint holds; passages are not among them."""

MAX_THREAD_ID_CHARS = 200
TITLE_CHARS = 80
PRUNE_INTERVAL_S = 3_600.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS threads (
    key TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    title TEXT NOT NULL,
    updated_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS threads_by_tenant ON threads (tenant, updated_s DESC);
"""


def thread_key(tenant: str, thread_id: str) -> str:
    """Return the checkpointer's name of a tenant's thread; no two pairs share one.

    Raises:
        InvalidThread: The thread id is empty or too long.
    """
    if not 0 < len(thread_id) <= MAX_THREAD_ID_CHARS:
        raise InvalidThread(
            f"a thread id has 1 to {MAX_THREAD_ID_CHARS} characters, this one has {len(thread_id)}; "
            "choose a shorter one, for example a UUID"
        )
    return f"{len(tenant)}:{tenant}:{thread_id}"


class ThreadStore:
    """The checkpointer of all graphs and the list of threads it keeps; belongs to one event loop."""

    def __init__(self, saver: AsyncSqliteSaver, *, ttl_s: float) -> None:
        """Wrap an opened saver; use `open_threads`."""
        self.saver = saver
        self._ttl_s = ttl_s
        self._pruned_s = 0.0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock that keeps the runs of one thread in order, whichever graph they use."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def touch(self, tenant: str, thread_id: str, title: str) -> None:
        """Record that a thread was used now; its first title stays. Expired threads go on the way."""
        now = time.time()
        async with self.saver.lock:
            await self.saver.conn.execute(
                "INSERT INTO threads (key, tenant, thread_id, title, updated_s) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET updated_s = excluded.updated_s",
                (thread_key(tenant, thread_id), tenant, thread_id, _title(title), now),
            )
            await self.saver.conn.commit()
        if now - self._pruned_s > PRUNE_INTERVAL_S:
            await self.prune()

    async def exists(self, tenant: str, thread_id: str) -> bool:
        """Return whether the tenant has such a thread."""
        query = "SELECT 1 FROM threads WHERE key = ?"
        async with (
            self.saver.lock,
            self.saver.conn.execute(query, (thread_key(tenant, thread_id),)) as rows,
        ):
            return await rows.fetchone() is not None

    async def require(self, tenant: str, thread_id: str) -> None:
        """Check that a thread exists.

        Raises:
            UnknownThread: The tenant has no such thread.
        """
        if not await self.exists(tenant, thread_id):
            raise UnknownThread(f"no thread {thread_id!r}; it may have expired or been deleted")

    async def threads(self, tenant: str) -> list[ThreadInfo]:
        """Return the tenant's threads, last used first."""
        query = (
            "SELECT thread_id, title, updated_s FROM threads WHERE tenant = ? ORDER BY updated_s DESC, key"
        )
        async with self.saver.lock, self.saver.conn.execute(query, (tenant,)) as rows:
            return [ThreadInfo(*row) for row in await rows.fetchall()]

    async def compact(self, key: str) -> None:
        """Remove all but the newest checkpoint of a thread, and the writes that led to the others."""
        async with self.saver.lock:
            for table in ("checkpoints", "writes"):
                await self.saver.conn.execute(
                    f"DELETE FROM {table} WHERE thread_id = ?1 AND checkpoint_id < (SELECT MAX(checkpoint_id)"
                    " FROM checkpoints WHERE thread_id = ?1 AND checkpoint_ns = '')",
                    (key,),
                )
            await self.saver.conn.commit()

    async def delete(self, tenant: str, thread_id: str) -> None:
        """Remove a thread and all it holds.

        Raises:
            UnknownThread: The tenant has no such thread.
        """
        await self.require(tenant, thread_id)
        key = thread_key(tenant, thread_id)
        async with self.lock(key):
            await self._remove([key])

    async def prune(self, now_s: float | None = None) -> int:
        """Remove threads not used for the time to live; return how many."""
        self._pruned_s = time.time() if now_s is None else now_s
        query = "SELECT key FROM threads WHERE updated_s < ?"
        async with self.saver.lock, self.saver.conn.execute(query, (self._pruned_s - self._ttl_s,)) as rows:
            keys = [row[0] for row in await rows.fetchall()]
        await self._remove([key for key in keys if not self.lock(key).locked()])
        return len(keys)

    async def _remove(self, keys: list[str]) -> None:
        for key in keys:
            await self.saver.adelete_thread(key)
            async with self.saver.lock:
                await self.saver.conn.execute("DELETE FROM threads WHERE key = ?", (key,))
                await self.saver.conn.commit()
        if keys:
            # The log still holds what was deleted until it is emptied.
            async with self.saver.lock:
                await self.saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _title(question: str) -> str:
    title = " ".join(question.split())
    return title if len(title) <= TITLE_CHARS else title[: TITLE_CHARS - 1].rstrip() + "…"


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)


@asynccontextmanager
async def open_threads(
    path: Path, *, ttl_s: float, extra_types: tuple[type, ...] = ()
) -> AsyncIterator[ThreadStore]:
    """Open the file of threads, made with its folder when it is new, readable by its owner alone.

    Args:
        path: SQLite file.
        ttl_s: Seconds after its last use at which a thread is removed.
        extra_types: Further dataclasses that user-built graphs keep in their state.

    Raises:
        OSError: The file cannot be made or opened; the message names it.
    """
    await asyncio.to_thread(_make_private, path)
    serde = JsonPlusSerializer(allowed_msgpack_modules=[*CHECKPOINTED_TYPES, *extra_types])
    async with aiosqlite.connect(path) as connection:
        saver = AsyncSqliteSaver(connection, serde=serde)
        try:
            await connection.execute("PRAGMA busy_timeout = 5000")
            # What is deleted is overwritten, not left in free pages.
            await connection.execute("PRAGMA secure_delete = ON")
            await saver.setup()
            await connection.executescript(_SCHEMA)
            await connection.commit()
        except sqlite3.DatabaseError as error:
            raise OSError(
                f"the threads file {path.name} cannot be used: {error}; move it away to start with no threads"
            ) from error
        store = ThreadStore(saver, ttl_s=ttl_s)
        await store.prune()
        yield store
