"""First node of every graph: admits the question and opens a turn."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from agents.context import RunContext, check_question
from agents.spans import traced
from agents.state import ChatTurn, RagState
from serving.types import TokenUsage


@traced
async def begin(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the state of a fresh run: the user's turn added, everything of earlier runs cleared.

    A thread keeps its state between runs, so without this the meters of one run would count against the next.

    Raises:
        InvalidQuestion: The question is empty or too long.
    """
    question = check_question(state["question"], runtime.context.config)
    return {
        "turns": [ChatTurn("user", question)],
        "queries": [],
        "hits": [],
        "passages": {},
        "draft": "",
        "answer": "",
        "citations": [],
        "usage": Overwrite(TokenUsage()),
        "num_model_calls": Overwrite(0),
        "num_retrievals": Overwrite(0),
        "stop_reason": None,
    }
