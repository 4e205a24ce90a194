"""Which of a search's hits are shown: the best, without repeats."""

from __future__ import annotations

from collections.abc import Collection

from retrieval.types import Hit, Passage, SearchResult


def choose(
    result: SearchResult, k: int, seen: Collection[str] = ()
) -> tuple[tuple[Hit, ...], tuple[Passage, ...]]:
    """Return the k best hits and passages, without passages that mostly repeat a better one's text.

    Args:
        result: What a search returned.
        k: Most passages wanted.
        seen: Chunk ids that were shown before and are left out.
    """
    hits: list[Hit] = []
    passages: list[Passage] = []
    for hit, passage in zip(result.hits, result.passages, strict=True):
        if hit.chunk_id in seen or any(_repeats(passage, other) for other in passages):
            continue
        hits.append(hit)
        passages.append(passage)
        if len(hits) == k:
            break
    return tuple(hits), tuple(passages)


def _repeats(passage: Passage, other: Passage) -> bool:
    if passage.document_id != other.document_id:
        return passage.text == other.text
    shared = min(passage.end, other.end) - max(passage.start, other.start)
    return shared * 2 > passage.end - passage.start
