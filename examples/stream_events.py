"""Follow a run as it happens: nodes, what was found, tokens, citations."""

import asyncio
import sys

from agents.events import NodeStarted, Retrieval, RunFinished, Token
from graft import AsyncGraft


async def main(question: str) -> None:
    async with await AsyncGraft.connect() as graft:
        async for event in graft.pipeline("rag").stream(question, thread_id="example"):
            match event:
                case NodeStarted():
                    print(f"\n-- {event.node}")
                case Retrieval():
                    print(f"found {len(event.hits)} passages in {event.duration_ms:.0f} ms")
                case Token():
                    print(event.text, end="", flush=True)
                case RunFinished():
                    print(f"\n== {event.result.stop_reason}: {event.result.answer}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What is GraphRAG?"))
