"""What the router needs of one copy of a shard, in this process or behind an actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from retrieval.truth.oplog import Batch


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a copy."""

    method: str
    """Name of a method of `ShardNode`."""
    args: tuple[Any, ...] = ()
    """Its arguments."""
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its keyword arguments."""
    min_seq: int = 0
    """Log position the copy must have reached before it answers; a replica catches up first."""


class Answered(NamedTuple):
    """The answer of a call, and how far the copy was when it gave it."""

    value: Any
    """What the method returned."""
    seq: int
    """Log position the answer reflects, or a later one."""


class ShardCopy(Protocol):
    """One copy of a shard."""

    @property
    def slot(self) -> int:
        """Return its number among the copies of the shard."""
        ...

    async def answer(self, call: Call, timeout_s: float) -> Answered:
        """Return what the method returns.

        Raises:
            ShardRestarting: The copy cannot answer now but is expected back.
            IndexUnavailable: The copy is gone, or did not answer within `timeout_s`.
            RetrievalError: Whatever the method raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What a primary answers to a replica's pull."""

    batch: Batch
    """The next stretch of its log; empty when there is nothing new, or the replica has diverged."""
    diverged: bool = False
    """Whether the replica's log is not a beginning of this one."""
