"""A prompt as a path of segments, by which machines that never saw its tokens agree on what of it is shared.

Segments are encoded one by one, so two prompts of the same root that begin with equal segments begin with
equal tokens. A node of the tree of all prompts is named by a hash over the root and the segments down to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from serving.passage_order import movable_places
from serving.types import GenerateRequest, Segment

KEY_BYTES = 8
"""Of a hash: a collision among a million nodes has odds of 1 in 37 million, and costs time only."""


@dataclass(frozen=True, slots=True)
class PathStep:
    """One segment of a prompt."""

    key: bytes
    """Hash of what it encodes to."""
    num_chars: int
    """Its length."""
    is_movable: bool
    """Whether it may change places with the other movable ones."""


@dataclass(frozen=True, slots=True)
class PromptPath:
    """What a prompt can share with others."""

    root: bytes
    """Name of the node above its first segment: equal where KV may be shared at all."""
    steps: tuple[PathStep, ...]
    """Its segments in order."""
    chunks: tuple[bytes, ...]
    """Names of its chunks in the chunk store, in order; empty where it takes none from there."""
    chunk_chars: int = 0
    """Length of those chunks."""

    @property
    def num_chars(self) -> int:
        """Return the prompt's length."""
        return sum(step.num_chars for step in self.steps)

    def nodes(self) -> list[bytes]:
        """Return the names of its nodes, one for each segment, in the order it has."""
        return chain(self.root, [step.key for step in self.steps])


def prompt_path(request: GenerateRequest, *, is_blended: bool) -> PromptPath:
    """Return a request's path.

    Args:
        request: What is asked; its passages in the order they are read.
        is_blended: Whether its chunks' KV comes from the chunk store.
    """
    segments, reuse = request.prompt.segments, request.reuse
    # Blended KV is approximate, and kept apart from exact KV and from that of other repairs.
    kind = f"{reuse.first_k}/{reuse.repair_share}" if is_blended else "exact"
    root = _hash(b"\0".join(text.encode() for text in (request.tenant, request.adapter or "", kind)))
    movable = movable_places(request.prompt) if reuse.mode == "reorder" else []
    steps = tuple(
        PathStep(segment_key(segment), len(segment.text), place in movable)
        for place, segment in enumerate(segments)
    )
    chunks, chunk_chars = (), 0
    if is_blended:
        chunks = _chunk_names(request.tenant, segments, steps)
        chunk_chars = sum(len(segment.text) for segment in segments if segment.chunk_id is not None)
    return PromptPath(root, steps, chunks, chunk_chars)


def segment_key(segment: Segment) -> bytes:
    """Return a hash of what a segment encodes to."""
    return _hash((b"\1" if segment.trusted else b"\0") + segment.text.encode("utf-8", "surrogatepass"))


def child(node: bytes, key: bytes) -> bytes:
    """Return the name of the node that a segment leads to from another."""
    return _hash(node + key)


def chain(root: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """Return the names of the nodes that segments lead to, one after the other."""
    nodes, node = [], root
    for key in keys:
        node = child(node, key)
        nodes.append(node)
    return nodes


def _chunk_names(tenant: str, segments: Sequence[Segment], steps: Sequence[PathStep]) -> tuple[bytes, ...]:
    """Return the names of chunks: whose, after which beginning, and what they encode to."""
    places = [place for place, segment in enumerate(segments) if segment.chunk_id is not None]
    if not places:
        return ()
    head = chain(_hash(b"chunk\0" + tenant.encode()), [step.key for step in steps[: places[0]]])
    beginning = head[-1] if head else b""
    return tuple(child(beginning, steps[place].key) for place in places)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
