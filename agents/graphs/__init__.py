"""Graphs by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.graph import StateGraph

from agents.errors import UnknownGraph
from agents.graphs.multi_hop import build_multi_hop
from agents.graphs.rag import build_rag

GRAPHS: dict[str, Callable[[], StateGraph[Any, Any, Any, Any]]] = {
    "rag": build_rag,
    "multi_hop": build_multi_hop,
}
"""Builders by the name that users, the CLI and `/v1/models` use."""


def build(name: str) -> StateGraph[Any, Any, Any, Any]:
    """Return a graph, not yet compiled.

    Raises:
        UnknownGraph: No graph of that name.
    """
    builder = GRAPHS.get(name)
    if builder is None:
        raise UnknownGraph(f"no graph named {name!r}; there are: {', '.join(sorted(GRAPHS))}")
    return builder()
