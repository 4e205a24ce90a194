"""Switching every shard to another index version at one epoch.

Two phases. Prepare: each shard makes the version its active one inside a transaction that it keeps open,
which proves that the version lacks no document there and holds every other write back. Commit: the new epoch
is made durable on the first shard, the point of no return; then the open transactions are committed and the
other copies are told. A coordinator that dies before the commit changes nothing, as the transactions end by
themselves; after it, `settle` of the next one finishes the work. Searches name the version they want, so
one that began before the switch ends on the version before, on every shard.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from retrieval.errors import IndexUnavailable, RetrievalError
from retrieval.sharding.epochs import Epoch, Reason
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.shard_copy import Call
from retrieval.sharding.topology import gathered

_log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
LEASE_S = 10.0
"""Longest time a shard holds writes back for a coordinator that may have died."""


async def newest_epoch(shards: Sequence[ReplicaSet]) -> Epoch:
    """Return the newest switch: what the first shard says, where every switch is committed.

    Raises:
        IndexUnavailable: The first shard does not answer, nor does any other.
    """
    try:
        return await shards[0].write("epoch", patience_s=_PATIENCE_S)
    except IndexUnavailable:
        answers = await asyncio.gather(
            *(shard.write("epoch", patience_s=_PATIENCE_S) for shard in shards[1:]), return_exceptions=True
        )
        known = [answer for answer in answers if isinstance(answer, Epoch)]
        if not known:
            raise
        return max(known, key=lambda epoch: epoch.epoch)


async def settle(shards: Sequence[ReplicaSet]) -> Epoch:
    """Bring every shard to the newest switch that was committed, and return it."""
    epoch = await newest_epoch(shards)
    await tell(shards, epoch)
    return epoch


async def switch(
    shards: Sequence[ReplicaSet],
    version_id: str,
    reason: Reason = "switch",
    *,
    entered: Callable[[Epoch], None],
) -> Epoch:
    """Make a version answer on every shard and return the switch; one that answers already stays.

    Args:
        shards: All shards.
        version_id: A version that lacks nothing.
        reason: Why.
        entered: Called with the switch once it is committed and before any shard lets writes through; they go
            to the new version alone, so searches must name that one by then.

    Raises:
        InvalidVersion: It lacks documents on some shard, or another switch came first; nothing was changed.
        IndexUnavailable: A shard does not answer; nothing was changed, or it will be by `settle`.
    """
    before = await newest_epoch(shards)
    if before.version == version_id:
        entered(before)
        return before
    epoch = Epoch(before.epoch + 1, version_id, reason, time.time())
    prepared = time.monotonic()
    try:
        await gathered(shard.write("prepare_switch", epoch, LEASE_S) for shard in shards)
        if time.monotonic() - prepared > LEASE_S / 2:
            raise IndexUnavailable(
                f"the shards took more than {LEASE_S / 2:g} s to prepare the switch to '{version_id}'; "
                "nothing was changed: try again when they are less busy"
            )
    except BaseException:
        await _end_prepared(shards, epoch, commit=False)
        raise
    await _commit(shards, epoch)
    entered(epoch)
    await tell(shards, epoch)
    return epoch


async def _commit(shards: Sequence[ReplicaSet], epoch: Epoch) -> None:
    """Make the switch durable; on an error nobody knows whether it is, unless the shard says so."""
    try:
        await shards[0].write("commit_epoch", epoch)
    except RetrievalError as error:
        if isinstance(error, IndexUnavailable) and await shards[0].write("epoch") == epoch:
            return
        await _end_prepared(shards, epoch, commit=False)
        raise


async def _end_prepared(shards: Sequence[ReplicaSet], epoch: Epoch, *, commit: bool) -> None:
    """Undo what was prepared; a shard that cannot be told undoes it when its lease ends."""
    ended = await asyncio.gather(
        *(shard.write("end_switch", epoch.epoch, commit, patience_s=LEASE_S) for shard in shards),
        return_exceptions=True,
    )
    for shard, error in zip(shards, ended, strict=True):
        if isinstance(error, BaseException):
            _log.warning("%s undoes the switch by itself: %s", shard.name, error)


async def tell(shards: Sequence[ReplicaSet], epoch: Epoch) -> None:
    """Have every copy answer from the version; a copy that cannot be told is told by a later `settle`."""
    told = await asyncio.gather(
        *(
            shard.call_slot(slot, Call("enter_epoch", (epoch,)), LEASE_S)
            for shard in shards
            for slot in shard.slots
        ),
        return_exceptions=True,
    )
    for error in told:
        if isinstance(error, BaseException):
            _log.warning("a copy learns of epoch %d later: %s", epoch.epoch, error)
