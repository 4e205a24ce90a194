"""A run as the page sees it: events folded into a view, the view as chat messages, and the feed of views."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from agents.events import (
    Cited,
    NodeFinished,
    NodeStarted,
    Retrieval,
    RunEvent,
    RunFinished,
    RunStarted,
    Token,
    Warned,
)
from agents.state import ChatTurn, Citation, StopReason
from ui.markup import escape, escape_lines, render
from ui.sources import chips, quote_list, source_row

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""Longest silence towards the browser: Gradio notices a closed tab only when a handler yields."""

MIN_GAP_S = 0.08
"""Shortest time between two updates: tokens that arrive together are shown together."""

Message = dict[str, Any]
"""A chat message as Gradio takes it: role, content, metadata."""

Ending = StopReason | Literal["running"]
"""How a run ended, or that it has not."""

_STAGES = {
    "retrieve": "Searching your documents",
    "rerank": "Choosing the best passages",
    "grade": "Judging the passages",
    "generate": "Writing",
    "cite": "Checking the answer against its sources",
}

_CUT_SHORT = {
    "steps": "the run reached its step limit",
    "model_calls": "the run reached its limit of model calls",
    "retrievals": "the run reached its limit of searches",
    "tokens": "the run reached its token limit",
    "deadline": "the run ran out of time",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of what happened."""

    text: str
    """What happened, as plain text."""
    detail: tuple[str, ...] = ()
    """Names under it, as plain text."""


@dataclass(frozen=True, slots=True)
class RunView:
    """What is known of a run so far."""

    question: str
    """As asked."""
    stage: str = "Starting"
    """What is being done now."""
    steps: tuple[Step, ...] = ()
    """What has been done."""
    num_passages: int = 0
    """Passages found so far."""
    draft: str = ""
    """The answer as it streams."""
    answer: str = ""
    """The final answer; set when the run has ended."""
    citations: tuple[Citation, ...] = ()
    """Citations of the answer."""
    ending: Ending = "running"
    """How it ended."""
    error: str | None = None
    """What went wrong; set when the ending is `error`."""
    total_s: float | None = None
    """Wall time; set when the run has ended."""


def advance(view: RunView, event: RunEvent) -> RunView:
    """Return the view after one more event."""
    match event:
        case RunStarted():
            return replace(view, stage="Searching your documents")
        case NodeStarted(node=node):
            return replace(view, stage=_STAGES.get(node, node.replace("_", " ").capitalize()))
        case Retrieval():
            return _after_retrieval(view, event)
        case Token(text=text):
            return replace(view, stage="Writing", draft=view.draft + text)
        case Cited(citations=citations):
            return replace(view, citations=citations)
        case Warned(message=message):
            return replace(view, steps=(*view.steps, Step(f"Note: {message}")))
        case RunFinished(result=result):
            return replace(
                view,
                stage="Done",
                answer=result.answer,
                citations=tuple(result.citations),
                ending=result.stop_reason,
                error=result.error,
                total_s=event.t_ms / 1000,
            )
        case NodeFinished():
            return view


def stopped(view: RunView, total_s: float) -> RunView:
    """Return the view of a run the person stopped; what was written so far stays."""
    return replace(
        view, stage="Stopped", answer=view.draft, citations=(), ending="cancelled", total_s=total_s
    )


def failed(view: RunView, error: str, total_s: float) -> RunView:
    """Return the view of a run that broke."""
    return replace(view, stage="Failed", answer=view.draft, ending="error", error=error, total_s=total_s)


def messages(view: RunView, elapsed_s: float = 0.0) -> list[Message]:
    """Return a run as chat messages: the question, the steps, and the answer as far as it is."""
    shown = [question_message(view.question), _steps_message(view, elapsed_s)]
    if view.ending != "running":
        shown.append(answer_message(view.answer, view.citations, view.ending, view.error))
    elif view.draft:
        shown.append(_assistant(f'<div class="answer draft">{render(view.draft)}</div>'))
    return shown


def turn_messages(turns: Sequence[ChatTurn]) -> list[Message]:
    """Return a kept conversation as chat messages."""
    return [
        question_message(turn.text)
        if turn.role == "user"
        else answer_message(turn.text, turn.citations, turn.stop_reason or "answered", None)
        for turn in turns
    ]


def question_message(question: str) -> Message:
    """Return a person's message; nothing in it is read as markup."""
    return {"role": "user", "content": f'<div class="question">{escape_lines(question)}</div>'}


def answer_message(answer: str, citations: Sequence[Citation], ending: Ending, error: str | None) -> Message:
    """Return the end of a run: an answer, a quiet notice that there is none, or what went wrong."""
    match ending:
        case "abstained":
            return _assistant(_abstention(citations))
        case "error":
            return _assistant(
                _written(answer, citations) + _note("error", error or "The run failed.", "alert")
            )
        case "cancelled":
            return _assistant(_written(answer, citations) + _note("stopped", "Stopped.", "status"))
        case "answered" | "running":
            return _assistant(_written(answer, citations))
        case meter:
            note = f"Cut short: {_CUT_SHORT.get(meter, meter)}."
            return _assistant(_written(answer, citations) + _note("stopped", note, "status"))


class RunFeed:
    """Turns a run's events into views, never silent for longer than a heartbeat, and closes its stream."""

    def __init__(self, question: str, events: AsyncIterator[RunEvent]) -> None:
        self._view = RunView(question)
        self._events = cast(AsyncGenerator[RunEvent, None], events)
        self._inbox: asyncio.Queue[RunEvent | Exception | None] = asyncio.Queue()
        self._stopped = False
        self._closed = asyncio.Event()
        self._began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the run was asked for."""
        return time.monotonic() - self._began_s

    def stop(self) -> None:
        """End the run: its stream is closed, and the last view keeps what was written."""
        self._stopped = True
        self._inbox.put_nowait(None)

    async def wait_closed(self) -> None:
        """Return once whoever reads the views has let go of them and the stream is closed."""
        await self._closed.wait()

    async def views(self) -> AsyncGenerator[RunView, None]:
        """Yield the view at least every heartbeat until the run has ended; closing this closes the run."""
        pump = asyncio.create_task(self._pump())
        try:
            yield self._view
            while self._view.ending == "running":
                await self._receive()
                if self._stopped and self._view.ending == "running":
                    self._view = stopped(self._view, self.elapsed_s)
                yield self._view
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._closed.set()

    async def _receive(self) -> None:
        """Wait for one event or a heartbeat, then take what arrives within the gap."""
        try:
            self._take(await asyncio.wait_for(self._inbox.get(), HEARTBEAT_S))
        except TimeoutError:
            return
        if self._view.ending == "running" and not self._stopped:
            await asyncio.sleep(MIN_GAP_S)
        while self._view.ending == "running" and not self._inbox.empty():
            self._take(self._inbox.get_nowait())

    def _take(self, item: RunEvent | Exception | None) -> None:
        if self._stopped:
            return
        if isinstance(item, Exception):
            self._view = failed(self._view, str(item) or type(item).__name__, self.elapsed_s)
        elif item is None:
            self._view = failed(self._view, "The run ended without an answer; ask again.", self.elapsed_s)
        else:
            self._view = advance(self._view, item)

    async def _pump(self) -> None:
        """Read the stream in one task, from its first event to its close."""
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._inbox.put_nowait(event)
            self._inbox.put_nowait(None)
        # The boundary of a run: whatever it raises is shown to the person who asked.
        except Exception as error:
            logger.warning("run failed: %s", error, exc_info=error)
            self._inbox.put_nowait(error)


def _after_retrieval(view: RunView, event: Retrieval) -> RunView:
    names = tuple(dict.fromkeys(passage.document for passage in event.passages))
    found = f"{_count(len(event.passages), 'passage')} in {event.duration_ms:.0f} ms"
    steps = [*view.steps, Step(f"Searched “{event.query}”: {found}", names)]
    if event.partial:
        steps.append(Step("Part of the index did not answer; these passages may not be all there are"))
    total = view.num_passages + len(event.passages)
    return replace(view, stage=f"Reading {_count(total, 'passage')}", steps=tuple(steps), num_passages=total)


def _steps_message(view: RunView, elapsed_s: float) -> Message:
    lines = "".join(
        f"<li>{escape(step.text)}" + "".join(f"<span>{escape(name)}</span>" for name in step.detail) + "</li>"
        for step in view.steps
    )
    content = f'<ul class="steps">{lines}</ul>' if lines else ""
    if view.ending == "running":
        clock = f" · {elapsed_s:.0f} s" if elapsed_s >= 2 else ""
        title = f"{view.stage}…{clock}"
        return {
            "role": "assistant",
            "content": content,
            "metadata": {"title": title, "status": "pending", "id": 1},
        }
    title = f"Read {_count(view.num_passages, 'passage')}" if view.num_passages else "No passages were read"
    metadata = {"title": title, "status": "done", "id": 1, "duration": round(view.total_s or 0.0, 1)}
    return {"role": "assistant", "content": content, "metadata": metadata}


def _abstention(citations: Sequence[Citation]) -> str:
    if not citations:
        body = (
            "<p>No passage in your documents speaks about this. "
            "Try other words, or add a document that does.</p>"
        )
    else:
        body = (
            "<p>No answer could be verified in your documents. These passages came closest:</p>"
            f"{quote_list(citations)}"
        )
    return f'<div class="abstained" role="note"><strong>No supported answer</strong>{body}</div>'


def _written(answer: str, citations: Sequence[Citation]) -> str:
    if not answer.strip():
        return ""
    made = chips(citations)
    copy = '<button type="button" class="copy">Copy</button>'
    return (
        f'<div class="answer"><div class="said">{render(answer, made.get)}</div>'
        f'<div class="pills">{source_row(citations)}{copy}</div></div>'
    )


def _note(kind: str, text: str, role: str) -> str:
    return f'<div class="note {kind}" role="{role}">{escape_lines(text)}</div>'


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
