"""Asking every shard the same question, with a deadline, and telling who did not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from retrieval.errors import IndexUnavailable, RetrievalUnavailable
from retrieval.reader import ShardReader

Answer = TypeVar("Answer")

STATS_SHARE = 0.4
"""Part of a search's time after which shards that still count terms are given up: a silent one must leave the
others time to look for candidates."""
LEGS_SHARE = 0.75
"""Part of a search's time after which shards that still look for candidates are given up: the rest is for the
others' passages."""
OPTIONAL_SHARE = 0.85
"""Part of a search's time after which no optional stage goes on."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Scatter:
    """The shards of one search; one that fails is left alone for the rest of it."""

    shards: Sequence[ShardReader]
    """All shards of the index."""
    time_s: float
    """Seconds the search may take."""
    started: float = field(default_factory=time.monotonic)
    """`time.monotonic()` at its start."""
    lost: dict[str, Exception] = field(default_factory=dict[str, Exception])
    """By name: why a shard is not part of the answer."""

    def remaining_s(self, share: float = 1.0) -> float:
        """Return the seconds left until this part of the time is over, not below 0."""
        return max(self.started + share * self.time_s - time.monotonic(), 0.0)

    async def ask(
        self,
        question: Callable[[ShardReader], Awaitable[Answer]],
        *,
        share: float = 1.0,
        names: Container[str] | None = None,
        optional: bool = False,
    ) -> dict[str, Answer]:
        """Return each shard's answer by its name, in the order of the shards.

        Args:
            question: The call of one shard.
            share: Part of the search's time after which the wait ends.
            names: Only the shards named here; None for all. Those already lost are never asked.
            optional: Whether a shard may stay silent without being lost: the search goes on without this.

        Raises:
            RetrievalRequestError: A shard says that the caller is at fault.
            RetrievalUnavailable: No shard of the index is left to answer.
        """
        asked = [
            shard
            for shard in self.shards
            if shard.name not in self.lost and (names is None or shard.name in names)
        ]
        tasks = {shard.name: asyncio.ensure_future(question(shard)) for shard in asked}
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=self.remaining_s(share))
            answers = {}
            for name, task in tasks.items():
                if task.done():
                    try:
                        answers[name] = task.result()
                    except RetrievalUnavailable as error:
                        self._lose(name, error)
                elif not optional:
                    self._lose(
                        name,
                        IndexUnavailable(
                            f"shard '{name}' did not answer within {share * self.time_s:.3g} s; "
                            "ask with a longer deadline_s, or look at its log"
                        ),
                    )
        finally:
            for task in tasks.values():
                task.cancel()
                task.add_done_callback(_look_at)
        if len(self.lost) == len(self.shards):
            raise self._all_lost()
        return answers

    def _lose(self, name: str, error: Exception) -> None:
        _log.warning("shard '%s' is left out of a search: %s", name, error)
        self.lost[name] = error

    def _all_lost(self) -> Exception:
        errors = list(self.lost.values())
        if len(errors) == 1:
            return errors[0]
        why = "; ".join(f"{name}: {error}" for name, error in self.lost.items())
        kinds = {type(error) for error in errors}
        return (kinds.pop() if len(kinds) == 1 else IndexUnavailable)(f"no shard could answer ({why})")


def _look_at(task: asyncio.Future[Any]) -> None:
    """Take note of a task's error, which nobody waits for any more."""
    if not task.cancelled():
        task.exception()
