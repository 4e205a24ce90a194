"""Searching every shard of a version at once: all of them answer, or the search fails by name.

Shapes: Q queries, D dimensions, S shards, K best rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from training.errors import IndexNotReady
from training.index.daemon_thread import DaemonThread
from training.index.encoding import row_ranges
from training.index.search_call import SearchCall
from training.index.top_rows import TopRows
from training.index.train_shard import TrainIndexShard

_RETRY_S = 0.1


class ShardClient(Protocol):
    """A shard, here or behind an actor. Futures raise our errors; IndexNotReady where it may come back."""

    @property
    def name(self) -> str:
        """Return what messages call it."""
        ...

    def search(self, call: SearchCall) -> Future[tuple[np.ndarray, np.ndarray]]:
        """Start a search."""
        ...

    def load(self, number: int) -> Future[None]:
        """Start to load a version."""
        ...

    def keep(self, numbers: Sequence[int]) -> Future[None]:
        """Start to drop every other version."""
        ...


class ShardedSearch:
    """All shards of an index, as one."""

    def __init__(self, shards: Sequence[ShardClient], deadline_s: float = 60.0, num_tries: int = 3) -> None:
        """Take over shards that are there.

        Args:
            shards: At least one; together they hold every row once.
            deadline_s: Longest wait for all shards, retries included.
            num_tries: Calls made to a shard that does not answer, spread over the deadline, at least 1. One
                that fails at once is called again until the deadline, since it may be starting.
        """
        if not shards or num_tries < 1 or deadline_s <= 0:
            raise ValueError(
                f"needs shards, tries and time: {len(shards)} shards, num_tries={num_tries}, {deadline_s=}"
            )
        self._shards = tuple(shards)
        self._deadline_s = deadline_s
        self._try_s = deadline_s / num_tries

    def search(self, call: SearchCall) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows over all shards.

        Returns:
            Rows int64[Q, min(k, rows of the index)] and scores float32, best first, equal scores by lower
            row; the same for any sharding.

        Raises:
            IndexNotReady: A shard did not answer within the deadline; the message names it.
            StalenessViolated: See `TrainIndexShard.search`, whose other errors come through too.
        """
        found = self._all("search", lambda shard: shard.search(call))
        top = TopRows(len(call.queries_QD), call.k)
        for rows_QK, scores_QK in found:
            top.add(torch.tensor(scores_QK), torch.tensor(rows_QK))
        rows_QK, scores_QK = top.result()
        return rows_QK.numpy(), scores_QK.numpy()

    def load(self, number: int) -> None:
        """Load a version in every shard; raises like `TrainIndexShard.load`, or IndexNotReady."""
        self._all("load", lambda shard: shard.load(number))

    def start_loading(self, number: int) -> None:
        """Let every shard load a version ahead; failures show at `load`."""
        for shard in self._shards:
            shard.load(number)

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop every other version in every shard."""
        self._all("keep", lambda shard: shard.keep(numbers))

    def _all(self, what: str, start: Callable[[ShardClient], Future[Any]]) -> list[Any]:
        """Return what every shard answers, asking again those that may come back."""
        end_s = time.monotonic() + self._deadline_s
        answers: dict[int, Any] = {}
        reasons: dict[int, str] = {}
        while True:
            asked = {i: start(shard) for i, shard in enumerate(self._shards) if i not in answers}
            left_s = end_s - time.monotonic()
            wait(asked.values(), timeout=max(min(self._try_s, left_s), 0.0))
            for i, future in asked.items():
                if not future.done():
                    future.cancel()
                    reasons[i] = "it did not answer"
                    continue
                error = future.exception()
                if error is None:
                    answers[i] = future.result()
                elif type(error) is IndexNotReady:
                    reasons[i] = str(error)
                else:
                    raise error
            if len(answers) == len(self._shards):
                return [answers[i] for i in range(len(self._shards))]
            if end_s - time.monotonic() <= _RETRY_S:
                lost = [f"{s.name}: {reasons[i]}" for i, s in enumerate(self._shards) if i not in answers]
                raise IndexNotReady(
                    f"{what} lacks {len(lost)} of {len(self._shards)} index shards after "
                    f"{self._deadline_s:g} s ({'; '.join(lost)}); fewer documents are never returned: "
                    "restart the shards or resume the run from its checkpoint"
                )
            time.sleep(_RETRY_S)


class LocalShard:
    """A shard in this process, with threads of its own: shards search together, and while they load."""

    def __init__(self, shard: TrainIndexShard, name: str) -> None:
        """Wrap a shard."""
        self._shard = shard
        self._name = name
        self._searching = DaemonThread(name)
        self._loading = DaemonThread(f"{name} loading")

    @property
    def name(self) -> str:
        """Return the name of the shard."""
        return self._name

    def search(self, call: SearchCall) -> Future[tuple[np.ndarray, np.ndarray]]:
        """Search in one thread."""
        return self._searching.submit(
            lambda: self._shard.search(
                call.number, call.step, call.snapshot_step, call.max_staleness, call.queries_QD, call.k
            )
        )

    def load(self, number: int) -> Future[None]:
        """Load in the other."""
        return self._loading.submit(lambda: self._shard.load(number))

    def keep(self, numbers: Sequence[int]) -> Future[None]:
        """Drop other versions, after loads asked for before."""
        return self._loading.submit(lambda: self._shard.keep(numbers))


def shard_rows(num_rows: int, block_rows: int, num_shards: int) -> list[tuple[int, int]]:
    """Return the rows [first, last) of each shard, cut between blocks so that no block is read twice.

    Args:
        num_rows: Rows of the corpus.
        block_rows: Rows of a block.
        num_shards: Wanted; fewer are returned where there are fewer blocks.
    """
    blocks = row_ranges(num_rows, block_rows)
    num_shards = min(num_shards, len(blocks))
    cuts = [round(shard * len(blocks) / num_shards) for shard in range(num_shards + 1)]
    return [(blocks[a].first, blocks[b - 1].last) for a, b in pairwise(cuts)]


def local_shards(
    folder: Path, num_rows: int, block_rows: int, num_shards: int = 1, device: str = "cpu"
) -> list[LocalShard]:
    """Return shards of this process over a folder of versions; see `TrainIndexShard` and `shard_rows`."""
    return [
        LocalShard(TrainIndexShard(folder, first, last, device), f"index shard {index}")
        for index, (first, last) in enumerate(shard_rows(num_rows, block_rows, num_shards))
    ]
