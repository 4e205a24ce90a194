"""What a passage grows by, and which hits it then makes superfluous.

`parent` joins the chunks on both sides, so that a model reads the section around a hit; `neighbours` joins
the chunks that follow, as RETRO gives the continuation of what it found. The shard cuts the grown passage out
of the document's text, so its offsets are exact and nothing is doubled where chunks overlap.

Source: Borgeaud et al., "Improving Language Models by Retrieving from Trillions of Tokens", ICML 2022: a
neighbour and its continuation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from retrieval.config import RetrievalConfig
from retrieval.types import Expand


class Reach(NamedTuple):
    """How many chunks around a hit's own its passage takes in."""

    before: int
    """Chunks before it."""
    after: int
    """Chunks after it."""


NO_REACH = Reach(0, 0)


def reach_of(expand: Expand, config: RetrievalConfig) -> Reach:
    """Return what a passage grows by."""
    if expand == "parent":
        return Reach(config.parent_chunks, config.parent_chunks)
    return Reach(0, config.continuation_chunks) if expand == "neighbours" else NO_REACH


def is_covered(chunk_id: str, better: Iterable[str], reach: Reach) -> bool:
    """Return whether the grown passage of a better hit already holds this chunk: it would be told twice."""
    if reach == NO_REACH:
        return False
    content, ordinal = _place(chunk_id)
    for other in better:
        other_content, other_ordinal = _place(other)
        if content == other_content and -reach.before <= ordinal - other_ordinal <= reach.after:
            return True
    return False


def _place(chunk_id: str) -> tuple[str, int]:
    """Return a chunk's document and content, and its place in them; see `Passage.chunk_id`."""
    content, _, ordinal = chunk_id.rpartition(":")
    return content, int(ordinal)
