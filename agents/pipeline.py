"""A graph ready to answer: typed events, budgets, threads, cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langgraph.graph import StateGraph

from agents.budget import Budget
from agents.checkpoints import ThreadStore, thread_key
from agents.config import AgentsConfig
from agents.context import RunContext, check_question
from agents.errors import InvalidThread
from agents.events import RunEvent, RunFinished
from agents.graphs import build
from agents.run import Run
from agents.state import ChatTurn, RunResult, ThreadInfo
from retrieval.types import DEFAULT_TENANT, Retriever
from serving.types import Generator

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


class Pipeline:
    """A graph with everything it needs to answer; safe for many runs at once on one event loop."""

    def __init__(
        self,
        graph: str | StateGraph[Any, Any, Any, Any],
        retriever: Retriever,
        generator: Generator,
        threads: ThreadStore | None = None,
        config: AgentsConfig | None = None,
        release: str = "",
        *,
        name: str | None = None,
    ) -> None:
        """Compile the graph.

        Args:
            graph: Name of one of ours, or a graph over `agents.state.RagState` with `RunContext` as its
                context, composed of `agents.nodes` and nodes of the user's own.
            retriever: Finds passages.
            generator: Writes text.
            threads: Keeps conversations; None when no run names a thread.
            config: Sizes and thresholds.
            release: Release that answers; each run keeps the one it began with. See `answer_as`.
            name: Name in events; that of the graph by default.

        Raises:
            UnknownGraph: No graph of that name.
        """
        builder = build(graph) if isinstance(graph, str) else graph
        self.name = name or (graph if isinstance(graph, str) else "custom")
        self.config = config or AgentsConfig()
        self.release = release
        self._retriever = retriever
        self._generator = generator
        self._threads = threads
        self._unkept: CompiledStateGraph[Any, Any, Any, Any] = builder.compile(name=self.name)
        self.graph = builder.compile(checkpointer=threads.saver, name=self.name) if threads else self._unkept
        """The compiled LangGraph, for everything this class does not do."""
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def answer_as(self, release: str, retriever: Retriever) -> None:
        """Have runs that begin from now on name another release, and find passages as it does.

        Args:
            release: Id of the release.
            retriever: Finds its passages.
        """
        self.release = release
        self._retriever = retriever

    def run(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        tenant: str = DEFAULT_TENANT,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
    ) -> AsyncGenerator[RunEvent, None]:
        """Return the events of one run, which starts when they are first asked for.

        The last event is a `RunFinished`, also when the run fails, is cancelled by `cancel` or runs out of
        budget. Closing the iterator early cancels the run down to the engine and keeps what was written in
        the thread.

        Args:
            question: The user's words.
            thread_id: Conversation to continue or begin; None for a run that is not kept.
            tenant: On whose behalf.
            library: Only this library.
            document_ids: Only these documents.
            history: Earlier turns, oldest first, of a caller who keeps them; used without a thread only.
            budget: What the run may spend.

        Raises:
            InvalidQuestion: The question is empty or too long; nothing was started.
            InvalidThread: The thread id cannot be kept; nothing was started.
        """
        context = RunContext(
            retriever=self._retriever,
            generator=self._generator,
            tenant=tenant,
            library=library,
            document_ids=tuple(document_ids),
            config=self.config,
            budget=budget or Budget(),
            thread_id=thread_id,
            release=self.release,
        )
        question = check_question(question, self.config)
        if thread_id is not None:
            thread_key(tenant, thread_id)
            self._kept()
        return self._events(question, thread_id, context, () if thread_id else tuple(history))

    async def _events(
        self, question: str, thread_id: str | None, context: RunContext, history: tuple[ChatTurn, ...]
    ) -> AsyncGenerator[RunEvent, None]:
        run = Run(
            self.graph if thread_id is not None else self._unkept,
            self.name,
            question,
            replace(context, started=time.monotonic()),
            thread_id,
            self._threads,
            history,
        )
        task = asyncio.create_task(run.drive(), name=f"graft-run-{context.run_id}")
        self._running[context.run_id] = (context.tenant, task)
        try:
            while True:
                event = await run.events.get()
                yield event
                if isinstance(event, RunFinished):
                    break
        finally:
            # Reached with the task alive only when the reader left early.
            task.cancel()
            del self._running[context.run_id]
            await asyncio.wait({task})

    async def invoke(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        tenant: str = DEFAULT_TENANT,
        library: str | None = None,
        document_ids: Sequence[str] = (),
        history: Sequence[ChatTurn] = (),
        budget: Budget | None = None,
    ) -> RunResult:
        """Return the result of one run; arguments and errors as `run`."""
        events = self.run(
            question,
            thread_id=thread_id,
            tenant=tenant,
            library=library,
            document_ids=document_ids,
            history=history,
            budget=budget,
        )
        result: RunResult | None = None
        async for event in events:
            if isinstance(event, RunFinished):
                result = event.result
        if result is None:
            raise RuntimeError("a run ended without its terminal event")
        return result

    def cancel(self, run_id: str, *, tenant: str = DEFAULT_TENANT) -> bool:
        """Stop a run, which then ends with `stop_reason="cancelled"`; return whether it was still going."""
        owner, task = self._running.get(run_id, ("", None))
        return owner == tenant and task is not None and task.cancel()

    async def history(self, thread_id: str, tenant: str = DEFAULT_TENANT) -> list[ChatTurn]:
        """Return the turns of a thread, oldest first.

        Raises:
            UnknownThread: The tenant has no such thread.
        """
        threads = self._kept()
        await threads.require(tenant, thread_id)
        snapshot = await self.graph.aget_state({"configurable": {"thread_id": thread_key(tenant, thread_id)}})
        # msgpack knows no tuples.
        return [replace(turn, citations=tuple(turn.citations)) for turn in snapshot.values.get("turns", [])]

    async def threads(self, tenant: str = DEFAULT_TENANT) -> list[ThreadInfo]:
        """Return the tenant's threads, last used first."""
        return await self._kept().threads(tenant)

    async def delete_thread(self, thread_id: str, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a thread and all it holds.

        Raises:
            UnknownThread: The tenant has no such thread.
        """
        await self._kept().delete(tenant, thread_id)

    def _kept(self) -> ThreadStore:
        if self._threads is None:
            raise InvalidThread("this pipeline keeps no threads; open a ThreadStore and pass it as `threads`")
        return self._threads
