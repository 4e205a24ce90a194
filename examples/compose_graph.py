"""Use Graft's nodes in a LangGraph graph of your own: here, one that only quotes and never generates."""

import asyncio
import sys

from langgraph.graph import END, START, StateGraph

from agents.context import RunContext
from agents.nodes import abstain, begin, retrieve
from agents.state import RagInput, RagOutput, RagState
from graft import AsyncGraft


async def main(question: str) -> None:
    builder = StateGraph(RagState, context_schema=RunContext, input_schema=RagInput, output_schema=RagOutput)
    for node in (begin, retrieve, abstain):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "begin")
    builder.add_edge("begin", "retrieve")
    builder.add_edge("retrieve", "abstain")
    builder.add_edge("abstain", END)
    graph = builder.compile()
    async with await AsyncGraft.connect() as graft:
        context = RunContext(retriever=graft.retriever, generator=graft.generator)
        state = await graph.ainvoke({"question": question}, context=context)
    print(state["answer"])


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What does FlashAttention avoid writing to memory?"))
