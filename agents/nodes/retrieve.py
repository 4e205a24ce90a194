"""Finds passages for the question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

from langgraph.runtime import Runtime

from agents.choice import choose
from agents.context import RunContext
from agents.events import Retrieval, Warned
from agents.meters import spent_meter
from agents.spans import traced
from agents.state import ChatTurn, RagState
from retrieval.types import Hit, Passage, SearchRequest


def asked_before(turns: list[ChatTurn]) -> str:
    """Return the user's turn before the current one, empty for a first question."""
    asked = [turn.text for turn in turns if turn.role == "user"]
    return asked[-2] if len(asked) >= 2 else ""


def search_query(question: str, turns: list[ChatTurn]) -> str:
    """Return the search string: the question, and for a follow-up also what the user asked before.

    "And who wrote it?" finds nothing by itself. The user's previous words carry the subject without a model
    call and without the answer's possible mistakes; the question stands first, where an embedder that cuts
    long texts keeps it. A change of subject pays for this with some noise.
    """
    before = asked_before(turns)
    return f"{question}\n{before}" if before else question


async def find(
    query: str, runtime: Runtime[RunContext], k: int, seen: Collection[str] = ()
) -> tuple[tuple[Hit, ...], tuple[Passage, ...]] | None:
    """Return the k best hits and passages of one search, reported as events; None when the deadline passed.

    Args:
        query: The search string, cut to what search takes.
        runtime: Whose run it is.
        k: Most passages wanted.
        seen: Chunk ids that were found before and are left out.

    Raises:
        RetrievalError: The search failed.
    """
    context = runtime.context
    request = SearchRequest(
        query=query,
        k=context.config.num_candidates + len(seen),
        library=context.library,
        document_ids=context.document_ids,
        tenant=context.tenant,
    )
    began = time.monotonic()
    limit = asyncio.timeout(context.remaining_s)
    try:
        async with limit:
            (result,) = await context.retriever.search([request])
    except TimeoutError:
        if not limit.expired():
            raise
        return None
    hits, passages = choose(result, k, seen)
    runtime.stream_writer(
        Retrieval(
            **context.stamp(),
            query=query,
            hits=hits,
            passages=passages,
            index_version=result.index_version,
            duration_ms=round((time.monotonic() - began) * 1e3, 3),
            partial=result.partial,
        )
    )
    if result.partial:
        missing = ", ".join(result.missing_shards) or "unnamed"
        runtime.stream_writer(
            Warned(
                **context.stamp(),
                message=f"part of the index did not answer ({missing}); relevant passages may be absent",
            )
        )
    return hits, passages


@traced
async def retrieve(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return hits and passages for the question, and the query that found them.

    Raises:
        RetrievalError: The search failed.
    """
    context = runtime.context
    if reason := spent_meter(state, context, "retrieval"):
        return {"stop_reason": reason}
    query = search_query(state["question"], state.get("turns", []))[: context.config.max_query_chars]
    spent = {"queries": [*state.get("queries", []), query], "num_retrievals": 1}
    found = await find(query, runtime, context.config.k_passages)
    if found is None:
        return {**spent, "stop_reason": "deadline"}
    hits, passages = found
    return {**spent, "hits": list(hits), "passages": {passage.chunk_id: passage for passage in passages}}


async def passages_of(state: RagState, runtime: Runtime[RunContext]) -> list[Passage]:
    """Return the passages of the state's hits in order, reloaded by id where a resume lost the text.

    A passage deleted meanwhile is left out and reported in a warning.
    """
    hits = state.get("hits", [])
    held = dict(state.get("passages", {}))
    lost = [hit.chunk_id for hit in hits if hit.chunk_id not in held]
    if lost:
        context = runtime.context
        loaded = await context.retriever.passages(lost, tenant=context.tenant)
        held.update({passage.chunk_id: passage for passage in loaded if passage is not None})
        num_gone = sum(passage is None for passage in loaded)
        if num_gone:
            runtime.stream_writer(
                Warned(
                    **context.stamp(),
                    message=f"{num_gone} of {len(hits)} passages were deleted since they were found",
                )
            )
    return [held[hit.chunk_id] for hit in hits if hit.chunk_id in held]
