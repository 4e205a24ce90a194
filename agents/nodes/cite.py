"""Aligns the draft to its sources."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime

from agents.asked import Asked
from agents.citation import Aligner, Alignment
from agents.config import AgentsConfig
from agents.context import RunContext
from agents.events import Cited, Warned
from agents.evidence import EvidenceSet
from agents.nodes.retrieve import asked_before, passages_of
from agents.spans import traced
from agents.state import RagState
from retrieval.types import Passage


def _align(readings: Sequence[Asked], passages: list[Passage], draft: str, config: AgentsConfig) -> Alignment:
    evidence = EvidenceSet(passages)
    aligned = [Aligner(asked, evidence, config).align(draft) for asked in readings]
    return max(aligned, key=lambda one: one.num_supported)


async def cite_for(
    readings: Sequence[Asked], state: RagState, runtime: Runtime[RunContext]
) -> dict[str, Any]:
    """Return the answer with its citations, or an empty answer when the passages support none of it.

    Args:
        readings: What may have been asked, one or more; of those under which most is supported, the first.
        state: Holds the draft and what was found.
        runtime: Whose run it is.
    """
    context = runtime.context
    passages = await passages_of(state, runtime)
    # Fifty passages take a third of a second: the event loop serves other runs meanwhile.
    aligned = await asyncio.to_thread(_align, readings, passages, state.get("draft", ""), context.config)
    if not aligned.answer:
        return {"answer": "", "citations": []}
    if num_dropped := aligned.num_claims - aligned.num_supported:
        runtime.stream_writer(
            Warned(
                **context.stamp(),
                message=f"{num_dropped} of {aligned.num_claims} sentences of the draft were left out: "
                "the passages do not support them",
            )
        )
    runtime.stream_writer(Cited(**context.stamp(), citations=aligned.citations))
    return {
        "answer": aligned.answer,
        "citations": list(aligned.citations),
        "stop_reason": state.get("stop_reason") or "answered",
    }


@traced
async def cite(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the answer with its citations, or an empty answer when the passages support none of it."""
    asked = Asked.read(state["question"], asked_before(state.get("turns", [])))
    return await cite_for([asked], state, runtime)
