"""Spreading the documents over another number of shards while they answer.

The log of every source shard is copied from its beginning into new shards, vectors included, so nothing is
embedded again; what changes meanwhile is in the log's next stretch. When little is left, the sources hold
writes back, the rest is copied, and one atomic replacement of the map makes the new shards answer. Until
then a crash leaves the old map, after it the new one: whichever shards the map does not name are removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from retrieval.errors import IndexUnavailable
from retrieval.sharding.shard_copy import Changes
from retrieval.sharding.topology import Topology, all_of, gathered
from retrieval.truth.oplog import WholeDocument

_log = logging.getLogger(__name__)

_BATCH_OPS = 256
_FEW_OPS = 64
"""Copying ends and the sources hold writes back once a pass brought no more than this a shard."""
_MAX_PASSES = 50
LEASE_S = 60.0
"""Longest time the sources hold writes back for a coordinator that may have died."""


class Reshard:
    """Copies from one topology to another and hands over; used once."""

    def __init__(self, source: Topology, target: Topology) -> None:
        """Prepare.

        Args:
            source: The shards that answer.
            target: Empty shards that have the same index versions and do not ingest yet.
        """
        self._source = source
        self._target = target
        self._copied = [0] * len(source.shards)
        self.num_documents = 0
        """Documents written so far; one that changed meanwhile counts again."""

    async def run(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        """Copy everything, then call `hand_over` while no write is under way.

        Args:
            hand_over: Makes the target answer, durably. The sources refuse writes for good when it returns;
                if it raises, they go on as before.

        Raises:
            IndexUnavailable: A shard does not answer, or writes come faster than they can be copied; the
                source answers as before.
        """
        for _ in range(_MAX_PASSES):
            if await self._pass() <= _FEW_OPS * len(self._source.shards):
                break
        else:
            raise IndexUnavailable(
                f"documents change faster than they are copied to {len(self._target.shards)} shards; "
                "nothing was changed: try again when fewer are added"
            )
        shut = time.monotonic()
        try:
            await all_of(self._source.shards, "shut", LEASE_S)
            await self._pass()
            await self._check()
            if time.monotonic() - shut > LEASE_S / 2:
                raise IndexUnavailable(
                    f"the last changes took over {LEASE_S / 2:g} s to copy; nothing was changed: try again"
                )
            await all_of(self._source.shards, "move", True)
            await hand_over()
        except BaseException:
            await asyncio.gather(
                *(shard.write("move", False) for shard in self._source.shards), return_exceptions=True
            )
            raise

    async def _pass(self) -> int:
        """Copy what is new on every source shard and return the number of changes."""
        return sum(await gathered(self._copy(number) for number in range(len(self._source.shards))))

    async def _copy(self, number: int) -> int:
        num_ops = 0
        while True:
            changes: Changes = await self._source.shards[number].write(
                "changes_since", self._copied[number], None, 0.0, _BATCH_OPS
            )
            batch = changes.batch
            if not batch.ops:
                return num_ops
            await self._adopt(batch.documents, {op[3] for op in batch.ops})
            self._copied[number] = batch.seq
            num_ops += len(batch.ops)

    async def _adopt(self, documents: list[WholeDocument], changed: set[str]) -> None:
        """Put documents in their new shards; those changed that are no more are removed there."""
        placement = self._target.placement
        whole: dict[int, list[WholeDocument]] = defaultdict(list)
        gone: dict[int, list[str]] = defaultdict(list)
        for document in documents:
            whole[placement.shard_of(document.document_id)].append(document)
        for document_id in changed - {document.document_id for document in documents}:
            gone[placement.shard_of(document_id)].append(document_id)
        await gathered(
            self._target.shards[shard].write("adopt", whole[shard], gone[shard]) for shard in {*whole, *gone}
        )
        self.num_documents += len(documents)

    async def _check(self) -> None:
        """Refuse to hand over unless both sides hold the same number of documents, in every version."""
        held = [await all_of(topology.shards, "count") for topology in (self._source, self._target)]
        before, after = ([sum(values) for values in zip(*counts, strict=True)] for counts in held)
        if before != after:
            raise IndexUnavailable(
                f"the new shards hold {after} documents and chunks instead of {before}; nothing was changed: "
                "please report this"
            )
