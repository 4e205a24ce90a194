"""Which tokens of a blended prompt are loaded and which are computed. Imports no torch and no vllm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PARAMS_KEY = "graft_chunk_kv"
"""Where a plan travels in a request's `kv_transfer_params`."""


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A chunk of a prompt whose KV is in a store, or is to go there."""

    start: int
    """Position of its first token."""
    end: int
    """Position after its last token."""
    key: str
    """Its key in the store."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a chunk must have 0 <= start < end, got {self.start} and {self.end}")


@dataclass(frozen=True, slots=True)
class Repair:
    """Which tokens of loaded chunks are computed again, having not seen what stands before them here."""

    first_k: int = 16
    """First tokens of every chunk, 0 or more: they take most of the attention that is an earlier text's.
    Source: EPIC (Hu et al. 2025), LegoLink."""
    share: float = 0.0
    """Share of all loaded tokens, 0 to 1, chosen by how far their keys on the second layer are from what they
    would be here. Source: CacheBlend (Yao et al. 2025)."""

    def __post_init__(self) -> None:
        if self.first_k < 0:
            raise ValueError(f"first_k must be >= 0, got {self.first_k}")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self.share}")


@dataclass(frozen=True, slots=True)
class BlendPlan:
    """What a request asks of the store."""

    load: tuple[ChunkSpan, ...] = ()
    """Chunks to take from the store where it has them, in the order of the prompt."""
    capture: tuple[ChunkSpan, ...] = ()
    """Chunks of an exact request to put into the store once they are computed."""
    repair: Repair = Repair()
    """What of the loaded chunks is computed again."""

    def __post_init__(self) -> None:
        for earlier, later in zip(self.load, self.load[1:], strict=False):
            if later.start < earlier.end:
                raise ValueError(
                    f"chunks must not overlap and must be in the order of the prompt, got [{earlier.start}, "
                    f"{earlier.end}) before [{later.start}, {later.end})"
                )

    def params(self) -> dict[str, Any]:
        """Return this plan as `kv_transfer_params`, of plain values that can travel between processes."""
        return {PARAMS_KEY: asdict(self)}

    @classmethod
    def from_params(cls, params: dict[str, Any] | None) -> BlendPlan | None:
        """Return the plan in a request's `kv_transfer_params`, or None where there is none."""
        found = (params or {}).get(PARAMS_KEY)
        if found is None:
            return None
        return cls(
            tuple(ChunkSpan(**span) for span in found["load"]),
            tuple(ChunkSpan(**span) for span in found["capture"]),
            Repair(**found["repair"]),
        )


@dataclass(frozen=True, slots=True)
class ChunkUse:
    """What became of one request's plan."""

    loaded: int = 0
    """Tokens whose KV came from the store and stayed."""
    computed: int = 0
    """Tokens before the end of the last chunk that were computed: text between chunks, chunks that were not
    in the store, and repairs."""
    missing: tuple[str, ...] = ()
    """Keys of chunks to load that are not in the store when the request ends."""

    def params(self) -> dict[str, Any]:
        """Return this as `kv_transfer_params` of the request's last output."""
        return {PARAMS_KEY: asdict(self)}

    @classmethod
    def from_params(cls, params: dict[str, Any] | None) -> ChunkUse | None:
        """Return what `params` said, or None where there is nothing of ours."""
        found = (params or {}).get(PARAMS_KEY)
        return None if found is None else cls(found["loaded"], found["computed"], tuple(found["missing"]))


def runs(mask: np.ndarray, offset: int = 0) -> list[tuple[int, int]]:
    """Return the maximal runs of true values as half-open ranges.

    Args:
        mask: bool[num_tokens].
        offset: Added to every position.
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(begin) + offset, int(end) + offset) for begin, end in edges.reshape(-1, 2)]


def tokens_to_compute(
    begin: int, end: int, loaded: Iterable[tuple[int, int]], chosen: Sequence[int] | np.ndarray = ()
) -> np.ndarray:
    """Return bool[end - begin], true for the tokens that have no KV yet or are to get it anew.

    Args:
        begin: First position that is not in the engine's cache already.
        end: Position after the last one.
        loaded: Half-open ranges of positions that were filled from a store.
        chosen: Positions among them to compute again.
    """
    mask = np.ones(end - begin, dtype=bool)
    for start, stop in loaded:
        mask[max(start - begin, 0) : max(stop - begin, 0)] = False
    positions = np.asarray(chosen, dtype=np.int64) - begin
    mask[positions[(positions >= 0) & (positions < end - begin)]] = True
    return mask
