"""Reads a run's meters: which limit of the budget is spent, if any."""

from __future__ import annotations

from typing import Literal

from agents.context import RunContext
from agents.state import RagState, StopReason
from serving.types import TokenUsage

CLOSING_STEPS = 4
"""Supersteps kept back beyond `budget.max_steps`: cite, abstain, finalize, and one of LangGraph's own."""

Spending = Literal["retrieval", "generation"]


def recursion_limit(max_steps: int) -> int:
    """Return LangGraph's limit for a budget, so that closing a run never meets it."""
    return max_steps + CLOSING_STEPS


def spent_meter(state: RagState, context: RunContext, spending: Spending) -> StopReason | None:
    """Return the meter that forbids one more search or generation, or None when it may go ahead.

    Every node that spends calls this first and returns the result as `stop_reason`; the graph then routes to
    its closing nodes, which spend nothing and always answer with what there is.
    """
    if ended := state.get("stop_reason"):
        return ended
    budget = context.budget
    usage = state.get("usage", TokenUsage())
    if context.remaining_s <= 0:
        return "deadline"
    if state.get("remaining_steps", CLOSING_STEPS) < CLOSING_STEPS:
        return "steps"
    if spending == "retrieval":
        return "retrievals" if state.get("num_retrievals", 0) >= budget.max_retrievals else None
    if state.get("num_model_calls", 0) >= budget.max_model_calls:
        return "model_calls"
    if (
        usage.completion_tokens >= budget.max_completion_tokens
        or usage.prompt_tokens >= budget.max_prompt_tokens
    ):
        return "tokens"
    return None
