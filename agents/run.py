"""One run of a graph, from its first event to its last."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langgraph.errors import GraphRecursionError

from agents.checkpoints import ThreadStore, thread_key
from agents.context import RunContext
from agents.errors import AgentError
from agents.events import Event, NodeFinished, NodeStarted, RunEvent, RunFinished, RunStarted, Token
from agents.meters import recursion_limit
from agents.sanitise import safe
from agents.spans import run_span
from agents.state import ChatTurn, RunResult, StopReason
from retrieval.errors import RetrievalError
from serving.errors import ServingError
from serving.types import TokenUsage

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

log = logging.getLogger(__name__)

GUARD_S = 3.0
"""Seconds past the deadline after which a run is stopped from outside; nodes stop themselves before."""

_MARK = re.compile(r"\s*\[\d+\]")


class Run:
    """Drives a compiled graph once and turns all that happens into events."""

    def __init__(
        self,
        graph: CompiledStateGraph[Any, Any, Any, Any],
        name: str,
        question: str,
        context: RunContext,
        thread_id: str | None,
        threads: ThreadStore | None,
        history: tuple[ChatTurn, ...] = (),
    ) -> None:
        """Prepare; `drive` does the work.

        Args:
            graph: Compiled with the checkpointer when `thread_id` is given.
            name: The graph's name.
            question: The user's words, checked.
            context: What the nodes get.
            thread_id: Thread to continue; None for a run that is not kept.
            threads: Keeps threads; needed with `thread_id`.
            history: Earlier turns of a run that is not kept.
        """
        self.events: asyncio.Queue[RunEvent] = asyncio.Queue()
        """Everything emitted so far and not yet read."""
        self._graph = graph
        self._name = name
        self._question = question
        self._history = history
        self._context = context
        self._thread_id = thread_id
        self._threads = threads if thread_id is not None else None
        self._seq = 0
        self._partial: list[str] = []
        self._timings_ms: dict[str, float] = {}
        self._started_nodes: dict[str, float] = {}
        self._last_node: str | None = None
        self._output: dict[str, Any] = {}

    async def drive(self) -> None:
        """Run to the end; the last event is always a `RunFinished`."""
        started = RunStarted(
            **self._context.stamp(),
            graph=self._name,
            thread_id=self._thread_id,
            release=self._context.release,
        )
        self._emit(started)
        with run_span(self._name, self._context, self._thread_id) as finished:
            result = await self._outcome()
            finished(result)
        self._emit(RunFinished(**self._context.stamp(), result=result))

    async def _outcome(self) -> RunResult:
        """Return the result, whatever ends the run."""
        guard = asyncio.timeout(self._context.remaining_s + GUARD_S)
        try:
            async with guard:
                return await self._result()
        except TimeoutError as error:
            return self._ended("deadline") if guard.expired() else self._failed(error)
        except GraphRecursionError:
            return self._ended("steps")
        except asyncio.CancelledError:
            return self._ended("cancelled")
        except Exception as error:  # the run boundary: a failure is a result, logged once
            return self._failed(error)

    async def _result(self) -> RunResult:
        """Return the result of the graph, its thread kept consistent whatever ends it."""
        async with AsyncExitStack() as stack:
            if self._threads is None or self._thread_id is None:
                await self._stream({})
                return self._answered()
            tenant = self._context.tenant
            key = thread_key(tenant, self._thread_id)
            await stack.enter_async_context(self._threads.lock(key))
            await self._threads.touch(tenant, self._thread_id, self._question)
            config: RunnableConfig = {"configurable": {"thread_id": key}}
            try:
                await self._stream(config)
            except BaseException as error:
                await self._keep_partial(config, error)
                raise
            await self._threads.compact(key)
            return self._answered()

    async def _stream(self, config: RunnableConfig) -> None:
        budget = self._context.budget
        limits: RunnableConfig = {
            **config,
            "recursion_limit": recursion_limit(budget.max_steps),
            "max_concurrency": budget.max_parallel,
        }
        stream = self._graph.astream(
            {"question": self._question, "turns": list(self._history)},
            limits,
            context=self._context,
            stream_mode=["tasks", "custom", "values"],
            durability="async" if config else None,
        )
        async with aclosing(stream) as parts:  # pyright: ignore[reportArgumentType]
            async for mode, data in parts:
                if mode == "custom":
                    self._on_custom(data)
                elif mode == "tasks":
                    self._on_task(data)
                else:
                    self._output = data

    def _on_custom(self, data: Any) -> None:
        if isinstance(data, Event):
            if isinstance(data, Token):
                self._partial.append(data.text)
                self._timings_ms.setdefault("first_token", data.t_ms)
            self._emit(data)

    def _on_task(self, data: dict[str, Any]) -> None:
        node = data["name"]
        if "input" in data:
            self._started_nodes[data["id"]] = time.monotonic()
            self._last_node = node
            self._emit(NodeStarted(**self._context.stamp(), node=node))
            return
        duration_ms = round((time.monotonic() - self._started_nodes.pop(data["id"])) * 1e3, 3)
        self._timings_ms[node] = self._timings_ms.get(node, 0.0) + duration_ms
        self._emit(NodeFinished(**self._context.stamp(), node=node, duration_ms=duration_ms))

    def _emit(self, event: Event) -> None:
        self.events.put_nowait(replace(event, seq=self._seq))  # pyright: ignore[reportArgumentType]
        self._seq += 1

    async def _keep_partial(self, config: RunnableConfig, error: BaseException) -> None:
        """Store what was written before the run broke off, so that the thread shows it."""
        if self._last_node is None:
            return
        if isinstance(error, GraphRecursionError):
            reason: StopReason = "steps"
        elif isinstance(error, asyncio.CancelledError):
            reason = "deadline" if self._context.remaining_s <= 0 else "cancelled"
        else:
            reason = "error"
        node = "finalize" if "finalize" in self._graph.nodes else self._last_node
        turn = ChatTurn("assistant", self._partial_text(), (), reason)
        await self._graph.aupdate_state(config, {"turns": [turn], "stop_reason": reason}, as_node=node)

    def _partial_text(self) -> str:
        # Marks were not checked against the passages, so they are not shown as citations.
        return _MARK.sub("", safe("".join(self._partial))).strip()

    def _answered(self) -> RunResult:
        output = self._output
        return self._with_totals(
            RunResult(
                run_id=self._context.run_id,
                thread_id=self._thread_id,
                answer=output.get("answer", ""),
                citations=tuple(output.get("citations", ())),
                stop_reason=output.get("stop_reason") or "answered",
                release=self._context.release,
            )
        )

    def _ended(self, reason: StopReason) -> RunResult:
        return self._with_totals(
            RunResult(
                run_id=self._context.run_id,
                thread_id=self._thread_id,
                answer=self._partial_text(),
                citations=(),
                stop_reason=reason,
                release=self._context.release,
            )
        )

    def _failed(self, error: Exception) -> RunResult:
        kind = type(error).__name__
        if isinstance(error, (AgentError, RetrievalError, ServingError)):
            message = str(error)
            log.warning("run %s failed: %s: %s", self._context.run_id, kind, message)
        else:
            message = f"the {self._last_node or 'first'} node failed unexpectedly: {kind}: {error}"
            log.error("run %s failed in node %s", self._context.run_id, self._last_node, exc_info=error)
        return replace(
            self._ended("error"),
            error=message,
            error_kind=kind,
            retry_after_s=getattr(error, "retry_after_s", None),
        )

    def _with_totals(self, result: RunResult) -> RunResult:
        total = self._context.stamp()["t_ms"]
        return replace(
            result,
            usage=self._output.get("usage") or TokenUsage(),
            timings_ms={**self._timings_ms, "total": total},
        )
