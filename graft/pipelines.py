"""A graph as users run it: `AsyncPipeline` is the core; `Pipeline` is its sync and async twin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from anyio.from_thread import BlockingPortal

from agents.budget import Budget
from agents.events import RunEvent
from agents.state import ChatTurn, RunResult, ThreadInfo
from graft.backend import RunClient
from graft.twin import async_stream, async_twin, sync_stream, sync_twin

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


class AsyncPipeline:
    """One graph, ready to run."""

    def __init__(self, runner: RunClient, tenant: str) -> None:
        self._runner = runner
        self._tenant = tenant

    @property
    def graph(self) -> CompiledStateGraph:
        """Return the compiled LangGraph, to draw it or to use it inside another graph."""
        return self._runner.graph

    async def invoke(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
    ) -> RunResult:
        """Return the cited answer to a question.

        Args:
            question: The user's words, not empty.
            thread_id: Conversation to continue and keep; None for a run that is not kept.
            library: Only passages of this library; None for all.
            document_ids: Only passages of these documents; empty for all.
            history: Earlier turns, for callers who keep the conversation themselves.
            budget: What the run may spend; None for the configured budget.

        Raises:
            InvalidQuestion: The question is empty or too long.
        """
        return await self._runner.invoke(
            question,
            thread_id=thread_id,
            library=library,
            document_ids=document_ids,
            history=history,
            budget=budget,
            tenant=self._tenant,
        )

    def stream(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
    ) -> AsyncIterator[RunEvent]:
        """Yield the events of a run, the last of them `RunFinished`; arguments as in `invoke`.

        Closing the iterator cancels the run down to the engine.
        """
        return self._runner.run(
            question,
            thread_id=thread_id,
            library=library,
            document_ids=document_ids,
            history=history,
            budget=budget,
            tenant=self._tenant,
        )

    async def history(self, thread_id: str) -> list[ChatTurn]:
        """Return a thread's messages, oldest first."""
        return await self._runner.history(thread_id, tenant=self._tenant)

    async def threads(self) -> list[ThreadInfo]:
        """Return the kept threads, latest first."""
        return await self._runner.threads(tenant=self._tenant)

    async def delete_thread(self, thread_id: str) -> None:
        """Remove a thread and everything it holds."""
        await self._runner.delete_thread(thread_id, tenant=self._tenant)


class Pipeline:
    """One graph, ready to run from any thread or loop; methods with `a` are for `await`."""

    def __init__(self, core: AsyncPipeline, portal: BlockingPortal) -> None:
        self._core = core
        self._portal = portal

    @property
    def graph(self) -> CompiledStateGraph:
        """Return the compiled LangGraph, to draw it or to use it inside another graph."""
        return self._core.graph

    invoke = sync_twin(AsyncPipeline.invoke)
    ainvoke = async_twin(AsyncPipeline.invoke)
    stream = sync_stream(AsyncPipeline.stream)
    astream = async_stream(AsyncPipeline.stream)
    history = sync_twin(AsyncPipeline.history)
    ahistory = async_twin(AsyncPipeline.history)
    threads = sync_twin(AsyncPipeline.threads)
    athreads = async_twin(AsyncPipeline.threads)
    delete_thread = sync_twin(AsyncPipeline.delete_thread)
    adelete_thread = async_twin(AsyncPipeline.delete_thread)
