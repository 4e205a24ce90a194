"""The chunks of a prompt as units of KV reuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.chunk_kv.blend_plan import ChunkSpan
from serving.chunk_kv.chunk_key import chunk_key
from serving.types import Prompt


@dataclass(frozen=True, slots=True)
class PromptChunks:
    """Where a prompt's chunks are, and after what their KV is computed."""

    spans: tuple[ChunkSpan, ...]
    """In the order of the prompt."""
    context_ids: tuple[int, ...]
    """Tokens before the first chunk. KV of every chunk is computed after these, whatever its place: the
    system turn is the same in all prompts of a graph, and a chunk that stands first needs no repair."""

    def alone(self, span: ChunkSpan, token_ids: Sequence[int]) -> tuple[list[int], ChunkSpan]:
        """Return the prompt that computes one chunk's KV, and where the chunk is in it.

        Args:
            span: One of `spans`.
            token_ids: The whole prompt's.
        """
        start = len(self.context_ids)
        chunk_ids = token_ids[span.start : span.end]
        return [*self.context_ids, *chunk_ids], ChunkSpan(start, start + len(chunk_ids), span.key)


def prompt_chunks(prompt: Prompt, segment_ids: Sequence[Sequence[int]], scope: str) -> PromptChunks | None:
    """Return the chunks of a prompt, or None where it has none.

    Args:
        prompt: Segments with a `chunk_id` are chunks.
        segment_ids: Token ids of each segment.
        scope: What KV must not be shared across; see `chunk_key`.
    """
    spans: list[ChunkSpan] = []
    context_ids: tuple[int, ...] | None = None
    token_ids: list[int] = []
    for segment, ids in zip(prompt.segments, segment_ids, strict=True):
        if segment.chunk_id is not None and ids:
            if context_ids is None:
                context_ids = tuple(token_ids)
            start = len(token_ids)
            spans.append(ChunkSpan(start, start + len(ids), chunk_key(scope, context_ids, ids)))
        token_ids += ids
    return PromptChunks(tuple(spans), context_ids) if context_ids is not None else None
