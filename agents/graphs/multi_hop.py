"""A tool loop: the model searches, opens what it found, and answers; citations are aligned over all it found.

begin -> act <-> observe, then cite -> finalize. When the loop ends without an answer (turns or a meter are
spent, or the model does not speak the format), one answer is written without tools from what was found; where
nothing was, the question itself is searched first. So a model that cannot drive the loop answers as `rag`.
"""

from __future__ import annotations

from typing import Literal

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agents.context import RunContext
from agents.graphs.rag import after_cite
from agents.nodes import abstain, finalize, retrieve
from agents.nodes.search_hops import MultiHopState, act, begin_loop, cite_hops, loop_of, observe, write
from agents.state import RagInput, RagOutput

Closing = Literal["retrieve", "write", "abstain"]


def _close(state: MultiHopState) -> Closing:
    if state.get("stop_reason"):
        return "abstain"
    return "write" if state.get("hits") else "retrieve"


def after_act(state: MultiHopState) -> Literal["observe", "cite"] | Closing:
    """Route an answer to its citations, a call to what it is shown, and everything else to the close."""
    if state.get("draft", "").strip():
        return "cite"
    return "observe" if state.get("turn") else _close(state)


def after_observe(state: MultiHopState, runtime: Runtime[RunContext]) -> Literal["act"] | Closing:
    """Route back to the model while turns are left."""
    is_done = state.get("stop_reason") or state.get("closing") or loop_of(state, runtime.context).is_over
    return _close(state) if is_done else "act"


def after_retrieve(state: MultiHopState) -> Literal["write", "abstain"]:
    """Route to the answer without tools only when there is something to read."""
    return "abstain" if state.get("stop_reason") or not state.get("hits") else "write"


def after_write(state: MultiHopState) -> Literal["cite", "abstain"]:
    """Route a draft to its citations."""
    return "cite" if state.get("draft", "").strip() else "abstain"


def build_multi_hop() -> StateGraph[MultiHopState, RunContext, RagInput, RagOutput]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(
        MultiHopState, context_schema=RunContext, input_schema=RagInput, output_schema=RagOutput
    )
    graph.add_node("begin", begin_loop)
    graph.add_node("cite", cite_hops)
    for node in (act, observe, retrieve, write, abstain, finalize):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "act")
    graph.add_conditional_edges("act", after_act)
    graph.add_conditional_edges("observe", after_observe)
    graph.add_conditional_edges("retrieve", after_retrieve)
    graph.add_conditional_edges("write", after_write)
    graph.add_conditional_edges("cite", after_cite)
    graph.add_edge("abstain", "finalize")
    graph.add_edge("finalize", END)
    return graph
