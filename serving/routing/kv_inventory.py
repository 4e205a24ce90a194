"""What a replica knows of the KV it holds, in terms that a router understands.

The engine names blocks by their tokens; a router knows prompts by their segments. Of every prompt served, the
block in which each of its segments ends is looked up here, and the segment's node is told to routers for as
long as the engine says that the block is there.
"""

from __future__ import annotations

import itertools
import uuid
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from serving.chunk_kv.store_stats import Tier
from serving.routing.block_mirror import BlockHash, BlockMirror, CacheEvent
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.prompt_path import PromptPath

MAX_CHANGES = 20_000
"""Changes remembered; who asks for older ones is told everything."""
MAX_CHUNKS = 20_000
"""Chunks whose place is followed; of more some are forgotten."""
CHUNKS_AT_ONCE = 512
"""Chunks whose place is looked up for one report, so that the engine is not held up for all of them."""
MAX_SERVED = 256
"""Prompts that wait to be looked up; a replica that no router asks is not to remember them all."""
MAX_TRIES = 3
"""Reports after which a prompt's blocks that no event named are given up."""


@dataclass(slots=True)
class _Served:
    """A prompt whose blocks are to be looked up."""

    nodes: list[bytes]
    ends: list[int]
    token_ids: Sequence[int]
    apart: Hashable
    num_tries: int = 0


class KVInventory:
    """Follows one engine's cache and chunk store; used from one thread at a time.

    Args:
        block_size: Tokens of the engine's blocks.
    """

    def __init__(self, block_size: int) -> None:
        self._life = uuid.uuid4().hex
        self._mirror = BlockMirror(block_size)
        self._block_size = block_size
        self._served: list[_Served] = []
        self._tokens: dict[bytes, int] = {}
        self._nodes_of: dict[BlockHash, set[bytes]] = {}
        self._chunk_keys: OrderedDict[bytes, str] = OrderedDict()
        self._tiers: dict[bytes, Tier] = {}
        self._versions = itertools.count(1)
        self._version = 0
        self._changes: deque[tuple[int, bytes, bool]] = deque(maxlen=MAX_CHANGES)
        """Version, name, and whether it is a chunk's."""

    def served(
        self, path: PromptPath, num_tokens: Sequence[int], token_ids: Sequence[int], apart: Hashable
    ) -> None:
        """Remember a prompt whose KV the engine has computed.

        Args:
            path: The prompt as it was read.
            num_tokens: Tokens of each of its segments.
            token_ids: All of them.
            apart: What its first block is kept apart by, as in `Stored.apart`.
        """
        ends = list(itertools.accumulate(num_tokens))
        self._served.append(_Served(path.nodes(), ends, token_ids, apart))

    def has_chunks(self, names: Sequence[bytes], keys: Sequence[str]) -> None:
        """Remember by which key the chunk store knows a chunk that prompts name.

        Args:
            names: From `PromptPath.chunks`.
            keys: The store's, one for each.
        """
        for name, key in zip(names, keys, strict=True):
            self._chunk_keys[name] = key
            self._chunk_keys.move_to_end(name, last=False)
        while len(self._chunk_keys) > MAX_CHUNKS:
            name, _ = self._chunk_keys.popitem()
            self._set_tier(name, None)

    def chunk_keys(self) -> dict[bytes, str]:
        """Return the store's keys of the chunks to look up next, those of the last prompts first."""
        asked = dict(itertools.islice(self._chunk_keys.items(), CHUNKS_AT_ONCE))
        for name in asked:
            self._chunk_keys.move_to_end(name)
        return asked

    @property
    def is_behind(self) -> bool:
        """Return whether so many prompts wait to be looked up that it is to be done without a report."""
        return len(self._served) >= MAX_SERVED

    def follow(self, events: Iterable[CacheEvent], tiers: dict[bytes, Tier | None]) -> None:
        """Take in what has changed.

        Args:
            events: What the engine published since the last call.
            tiers: Where chunks are now.
        """
        for block in self._mirror.apply(events):
            for node in self._nodes_of.pop(block, ()):
                del self._tokens[node]
                self._changed(node)
        unresolved = [served for served in self._served if not self._resolve(served)]
        self._served = [served for served in unresolved if served.num_tries < MAX_TRIES]
        for name, tier in tiers.items():
            self._set_tier(name, tier)

    def report(self, life: str, since: int, state: ReplicaState) -> KVReport:
        """Return what has changed since an earlier report.

        Args:
            life: That report's, or "" for none.
            since: Its version.
            state: What else the replica tells.
        """
        oldest = self._changes[0][0] if self._changes else self._version + 1
        if life != self._life or since < oldest - 1:
            return KVReport(self._life, self._version, True, {**self._tokens}, {**self._tiers}, state)
        prefixes: dict[bytes, int | None] = {}
        chunks: dict[bytes, Tier | None] = {}
        for version, name, is_chunk in reversed(self._changes):
            if version <= since:
                break
            if is_chunk:
                chunks[name] = self._tiers.get(name)
            else:
                prefixes[name] = self._tokens.get(name)
        return KVReport(self._life, self._version, False, prefixes, chunks, state)

    def _resolve(self, served: _Served) -> bool:
        """Look up the blocks of a prompt; returns whether all of its whole blocks were found."""
        served.num_tries += 1
        held = self._mirror.held(served.token_ids, served.apart)
        for node, end in zip(served.nodes, served.ends, strict=True):
            num_blocks = end // self._block_size
            # A segment that ends within the first block saves nothing, but leads to those that do.
            last = max(num_blocks, 1) - 1
            if last >= len(held) or node in self._tokens:
                continue
            self._tokens[node] = num_blocks * self._block_size
            self._nodes_of.setdefault(held[last], set()).add(node)
            self._changed(node)
        return len(held) >= len(served.token_ids) // self._block_size

    def _set_tier(self, name: bytes, tier: Tier | None) -> None:
        if tier == self._tiers.get(name):
            return
        if tier is None:
            del self._tiers[name]
        else:
            self._tiers[name] = tier
        self._changed(name, is_chunk=True)

    def _changed(self, name: bytes, *, is_chunk: bool = False) -> None:
        self._version = next(self._versions)
        self._changes.append((self._version, name, is_chunk))
