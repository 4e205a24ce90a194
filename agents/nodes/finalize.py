"""Last node of every graph: closes the turn."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agents.context import RunContext
from agents.spans import traced
from agents.state import ChatTurn, RagState


@traced
async def finalize(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the assistant's turn for the thread; spends nothing, so it runs whatever meter ran out."""
    reason = state.get("stop_reason") or "answered"
    turn = ChatTurn("assistant", state.get("answer", ""), tuple(state.get("citations", [])), reason)
    return {"turns": [turn], "stop_reason": reason}
