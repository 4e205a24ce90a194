"""Puts the passages of a prompt in the order that lets most of its KV be reused."""

from __future__ import annotations

from collections.abc import Sequence

from serving.prefix_tree import PrefixTree
from serving.types import PassageOrder, Prompt


class PassageArranger:
    """Arranges the first stretch of passages in prompts; what stands later shares no prefix anyway.

    Only the passages change places: the template between them, which numbers them, stays. They keep their
    tokens, so the prompt is exactly what it would be had the passages been given in that order.

    Args:
        capacity_tokens: Tokens of KV that the engine can hold.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self._tree = PrefixTree(capacity_tokens)

    def arrange(
        self, prompt: Prompt, segment_ids: Sequence[list[int]], order: PassageOrder, tenant: str
    ) -> list[int]:
        """Return for each place of a prompt the segment that comes to stand there.

        Args:
            prompt: What is asked. One with a passage twice stays as it is.
            segment_ids: Token ids of its segments.
            order: `canonical` sorts by chunk id; `greedy_tree` begins as an earlier prompt did.
            tenant: Whose prompt it is: tenants share no KV.
        """
        sources = list(range(len(segment_ids)))
        places = movable_places(prompt)
        mine = [prompt.segments[place].chunk_id for place in places]
        if not mine:
            return sources
        if order == "canonical":
            chosen = sorted(range(len(mine)), key=lambda index: str(mine[index]))
        else:
            head = (tenant, tuple(token for tokens in segment_ids[: places[0]] for token in tokens))
            chosen = self._tree.order(head, mine, [len(segment_ids[place]) for place in places])
        for place, index in zip(places, chosen, strict=True):
            sources[place] = places[index]
        return sources


def chunk_ids(prompt: Prompt) -> tuple[str, ...]:
    """Return the ids of a prompt's chunks in order."""
    return tuple(segment.chunk_id for segment in prompt.segments if segment.chunk_id is not None)


def movable_places(prompt: Prompt) -> list[int]:
    """Return the places of the chunks that may change places with each other.

    They are those up to the first segment after one that belongs to no passage; none where one comes twice.
    """
    places: list[int] = []
    for place, segment in enumerate(prompt.segments):
        if segment.chunk_id is not None:
            places.append(place)
        elif places and segment.kind != "passage":
            break
    ids = {prompt.segments[place].chunk_id for place in places}
    return places if len(ids) == len(places) else []
