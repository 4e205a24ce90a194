"""Aligns the draft to its sources."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.runtime import Runtime

from agents.asked import Asked
from agents.citation import Aligner, Alignment
from agents.config import AgentsConfig
from agents.context import RunContext
from agents.events import Cited, Warned
from agents.evidence import EvidenceSet
from agents.nodes.retrieve import asked_before, passages_of
from agents.state import RagState
from retrieval.types import Passage


def _align(asked: Asked, passages: list[Passage], draft: str, config: AgentsConfig) -> Alignment:
    return Aligner(asked, EvidenceSet(passages), config).align(draft)


async def cite(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the answer with its citations, or an empty answer when the passages support none of it."""
    context = runtime.context
    passages = await passages_of(state, runtime)
    asked = Asked.read(state["question"], asked_before(state.get("turns", [])))
    # Fifty passages take a third of a second: the event loop serves other runs meanwhile.
    aligned = await asyncio.to_thread(_align, asked, passages, state.get("draft", ""), context.config)
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
