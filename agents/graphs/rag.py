"""One retrieval, one generation, aligned citations; the default graph.

begin -> retrieve -> generate -> cite -> finalize, with abstain before finalize wherever there is no supported
answer: nothing found, a meter spent, or a draft the passages do not hold.
"""

from __future__ import annotations

from typing import Literal

from langgraph.graph import END, START, StateGraph

from agents.context import RunContext
from agents.nodes import abstain, begin, cite, finalize, generate, retrieve
from agents.state import RagInput, RagOutput, RagState


def after_retrieve(state: RagState) -> Literal["generate", "abstain"]:
    """Route to the generation only when there is something to read and no meter is spent."""
    return "abstain" if state.get("stop_reason") or not state.get("hits") else "generate"


def after_generate(state: RagState) -> Literal["cite", "abstain"]:
    """Route a draft, also one that was cut short, to its citations."""
    return "cite" if state.get("draft", "").strip() else "abstain"


def after_cite(state: RagState) -> Literal["finalize", "abstain"]:
    """Route an answer that nothing supports to the quotes."""
    return "finalize" if state.get("answer") else "abstain"


def build_rag() -> StateGraph[RagState, RunContext, RagInput, RagOutput]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(RagState, context_schema=RunContext, input_schema=RagInput, output_schema=RagOutput)
    for node in (begin, retrieve, generate, cite, abstain, finalize):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "retrieve")
    graph.add_conditional_edges("retrieve", after_retrieve)
    graph.add_conditional_edges("generate", after_generate)
    graph.add_conditional_edges("cite", after_cite)
    graph.add_edge("abstain", "finalize")
    graph.add_edge("finalize", END)
    return graph
