"""Ends a run that has no supported answer: says so and shows the closest quotes."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.runtime import Runtime

from agents.asked import Asked
from agents.config import AgentsConfig
from agents.context import RunContext
from agents.events import Cited
from agents.evidence import EvidenceSet
from agents.nodes.retrieve import asked_before, passages_of
from agents.quotes import best_quotes, quoted
from agents.spans import traced
from agents.state import Citation, RagState, StopReason
from retrieval.types import Passage

NOTHING_FOUND = "Nothing was found in the documents for this question."
UNSUPPORTED = "No answer to this question could be verified in the documents."
CLOSEST = "The closest passages say:"

_SPENT: dict[StopReason, str] = {
    "steps": "The run reached its limit of steps",
    "model_calls": "The run reached its limit of generations",
    "retrievals": "The run reached its limit of searches",
    "tokens": "The run reached its limit of tokens",
    "deadline": "The run reached its deadline",
    "cancelled": "The run was cancelled",
}


def _opening(reason: StopReason | None, *, is_searched: bool, is_found: bool) -> str:
    spent = _SPENT.get(reason) if reason else None
    if spent and is_searched:
        return f"{spent} before it had a supported answer."
    if spent:
        return f"{spent} before the documents were searched."
    return UNSUPPORTED if is_found else NOTHING_FOUND


def _closest(asked: Asked, passages: list[Passage], config: AgentsConfig) -> tuple[Citation, ...]:
    evidence = EvidenceSet(passages)
    return best_quotes(asked, evidence, num_quotes=config.num_quotes, threshold=config.quote_threshold)


@traced
async def abstain(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return a plain sentence that there is no supported answer, and the quotes closest to the question."""
    context = runtime.context
    passages = await passages_of(state, runtime)
    reason = state.get("stop_reason")
    asked = Asked.read(state["question"], asked_before(state.get("turns", [])))
    citations = await asyncio.to_thread(_closest, asked, passages, context.config)
    opening = _opening(reason, is_searched=state.get("num_retrievals", 0) > 0, is_found=bool(citations))
    answer = quoted(f"{opening} {CLOSEST}", citations) if citations else opening
    if citations:
        runtime.stream_writer(Cited(**context.stamp(), citations=citations))
    return {"answer": answer, "citations": list(citations), "stop_reason": reason or "abstained"}
