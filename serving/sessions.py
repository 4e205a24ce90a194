"""Carries many streams between two processes in few messages.

A Ray stream costs about a millisecond of CPU per item, as much as a small model spends on a token. So a
client opens one session and asks again and again for whatever its requests have produced since the last
time. First tokens, ends and errors are told at once, what lies between at most 33 times a second.

A session whose client has gone silent is closed and its requests are cancelled in the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field

from serving.errors import GeneratorUnavailable, ServingError
from serving.generator import LocalGenerator
from serving.spans import TraceContext, context_in
from serving.types import GeneratedChunk, GenerateRequest

logger = logging.getLogger(__name__)

POLL_S = 10.0
"""A poll with nothing to tell returns after this, which shows that both sides live."""
TELL_INTERVAL_S = 0.03
"""Least time between two messages of a session that hold nothing urgent."""
LEASE_S = 30.0
"""A session not polled for this long belongs to a client that is gone."""


class SessionLost(Exception):
    """The session is unknown: the actor has restarted, or the client was silent for too long."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request has produced since the last poll."""

    number: int
    """The client's number of the request."""
    chunk: GeneratedChunk | None
    """New output, merged; None when only an error is to tell."""
    error: Exception | None = None
    """Why the request failed; nothing follows it."""


def merge_chunks(chunks: list[GeneratedChunk]) -> GeneratedChunk:
    """Return consecutive chunks of one request as one."""
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    return GeneratedChunk(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
        chunk_order=last.chunk_order,
        weights=last.weights,
    )


@dataclass(slots=True)
class _Session:
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    chunks: dict[int, list[GeneratedChunk]] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)
    num_polls: int = 0
    told_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)

    def put(self, number: int, chunk: GeneratedChunk) -> None:
        self.chunks.setdefault(number, []).append(chunk)
        self.news.set()
        if number not in self.begun:
            self.begun.add(number)
            self.urgent.set()

    def end(self, number: int, error: Exception | None) -> None:
        if error is not None:
            self.errors[number] = error
        del self.tasks[number]
        self.begun.discard(number)
        self.news.set()
        self.urgent.set()

    def take(self) -> list[Delivery]:
        numbers = {**self.chunks, **self.errors}
        deliveries = [
            Delivery(
                number,
                merge_chunks(self.chunks[number]) if number in self.chunks else None,
                self.errors.get(number),
            )
            for number in numbers
        ]
        self.chunks = {}
        self.errors = {}
        self.news.clear()
        self.urgent.clear()
        self.told_s = time.monotonic()
        return deliveries


class Sessions:
    """The actor's side: runs requests of many clients over one generator.

    Args:
        generator: Answers the requests.
    """

    def __init__(self, generator: LocalGenerator) -> None:
        self._generator = generator
        self._sessions: dict[str, _Session] = {}

    def open(self) -> str:
        """Return the id of a new session."""
        session_id = uuid.uuid4().hex
        self._sessions[session_id] = _Session()
        return session_id

    def submit(
        self, session_id: str, number: int, request: GenerateRequest, asking: TraceContext | None = None
    ) -> None:
        """Begin a request; its output and its errors come with `poll`.

        Args:
            session_id: From `open`.
            number: Chosen by the client, unique in the session.
            request: What to generate.
            asking: The span that asks for it.

        Raises:
            SessionLost: Unknown session; open another.
        """
        session = self._session(session_id)
        run = self._run(session, number, request)
        session.tasks[number] = asyncio.create_task(run, context=context_in(asking or {}))

    async def poll(self, session_id: str) -> list[Delivery]:
        """Return what the session's requests have produced; waits up to `POLL_S` for the first piece.

        Returns with nothing when a request ends without a word, as cancelled ones do.

        Raises:
            SessionLost: Unknown session; its requests are lost.
        """
        session = self._session(session_id)
        session.num_polls += 1
        try:
            async with asyncio.timeout(POLL_S):
                await session.news.wait()
            rest_s = session.told_s + TELL_INTERVAL_S - time.monotonic()
            async with asyncio.timeout(max(rest_s, 0.0)):
                await session.urgent.wait()
        except TimeoutError:
            pass
        finally:
            session.num_polls -= 1
            session.seen_s = time.monotonic()
        return session.take()

    def cancel(self, session_id: str, number: int) -> None:
        """Cancel a request in the engine; unknown ones are ignored."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        task = session.tasks.get(number)
        if task is not None:
            task.cancel()
        session.chunks.pop(number, None)
        session.errors.pop(number, None)

    async def told(self) -> None:
        """Return once no request is under way and polls have taken all that was produced."""
        # Looked at now and then: one event could not tell of all sessions.
        while any(one.tasks or one.chunks or one.errors for one in self._sessions.values()):  # noqa: ASYNC110
            await asyncio.sleep(TELL_INTERVAL_S)

    def close_silent(self) -> list[str]:
        """Close sessions whose lease has run out, cancel their requests, and return their ids."""
        now = time.monotonic()
        silent = [
            session_id
            for session_id, session in self._sessions.items()
            if not session.num_polls and now - session.seen_s > LEASE_S
        ]
        for session_id in silent:
            for task in self._sessions.pop(session_id).tasks.values():
                task.cancel()
        return silent

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionLost(session_id)
        return session

    async def _run(self, session: _Session, number: int, request: GenerateRequest) -> None:
        error: Exception | None = None
        try:
            async with aclosing(self._generator.generate(request)) as chunks:
                async for chunk in chunks:
                    session.put(number, chunk)
        except (ServingError, ValueError) as ours:
            error = ours
        except Exception as bug:
            logger.exception("a request failed")
            error = GeneratorUnavailable(
                f"The request failed inside the generator ({type(bug).__name__}: {bug}); see its log."
            )
        finally:
            session.end(number, error)
