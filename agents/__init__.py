"""LangGraph agents over `retrieval` and `serving`: graphs, state, events, budgets, threads, citations.

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# LangGraph reads this once, at its import: checkpoints may then construct only types named in advance.
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")

if TYPE_CHECKING:
    from agents.budget import Budget as Budget
    from agents.checkpoints import ThreadStore as ThreadStore
    from agents.checkpoints import open_threads as open_threads
    from agents.config import AgentsConfig as AgentsConfig
    from agents.context import RunContext as RunContext
    from agents.errors import AgentError as AgentError
    from agents.errors import InvalidQuestion as InvalidQuestion
    from agents.errors import InvalidThread as InvalidThread
    from agents.errors import UnknownGraph as UnknownGraph
    from agents.errors import UnknownThread as UnknownThread
    from agents.events import RunEvent as RunEvent
    from agents.graphs import GRAPHS as GRAPHS
    from agents.graphs.rag import build_rag as build_rag
    from agents.pipeline import Pipeline as Pipeline
    from agents.state import ChatTurn as ChatTurn
    from agents.state import Citation as Citation
    from agents.state import RagState as RagState
    from agents.state import RunResult as RunResult
    from agents.state import ThreadInfo as ThreadInfo

_HOMES = {
    "AgentError": "agents.errors",
    "AgentsConfig": "agents.config",
    "Budget": "agents.budget",
    "ChatTurn": "agents.state",
    "Citation": "agents.state",
    "GRAPHS": "agents.graphs",
    "InvalidQuestion": "agents.errors",
    "InvalidThread": "agents.errors",
    "Pipeline": "agents.pipeline",
    "RagState": "agents.state",
    "RunContext": "agents.context",
    "RunEvent": "agents.events",
    "RunResult": "agents.state",
    "ThreadInfo": "agents.state",
    "ThreadStore": "agents.checkpoints",
    "UnknownGraph": "agents.errors",
    "UnknownThread": "agents.errors",
    "build_rag": "agents.graphs.rag",
    "open_threads": "agents.checkpoints",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
