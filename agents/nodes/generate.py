"""Writes a draft answer from the passages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from langgraph.runtime import Runtime

from agents.context import RunContext
from agents.events import Token, Warned
from agents.meters import spent_meter
from agents.nodes.retrieve import passages_of
from agents.sanitise import SafeStream, plain
from agents.spans import traced
from agents.state import ChatTurn, RagState, StopReason
from retrieval.types import Hit, Passage
from serving.prompt import PromptPassage, Turn, rag_prompt
from serving.types import FinishReason, GenerateRequest, Prompt, Sampling, TokenUsage

_MARK = re.compile(r"\s*\[\d+\]")
DEADLINE_GRACE_S = 1.0
"""The engine ends a generation at its deadline by itself; this long after, the node does."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    prompt: Prompt
    num_tokens: int
    num_passages: int
    num_turns: int


def history(turns: Sequence[ChatTurn], num_exchanges: int) -> list[Turn]:
    """Return the last answered exchanges as prompt turns, oldest first.

    Abstentions, cancelled and failed runs are left out: they hold quotes and halves, not answers. So are
    citation marks, whose numbers belong to other passages.
    """
    exchanges = [
        (Turn("user", asked.text), Turn("assistant", _MARK.sub("", answered.text)))
        for asked, answered in pairwise(turns)
        if (asked.role, answered.role, answered.stop_reason) == ("user", "assistant", "answered")
    ]
    return [turn for pair in exchanges[max(0, len(exchanges) - num_exchanges) :] for turn in pair]


async def _fit(
    context: RunContext, question: str, passages: Sequence[Passage], turns: Sequence[Turn], room: int
) -> _Fitted | None:
    """Return the largest prompt within `room` tokens: oldest history goes first, then the last passages."""
    num_passages, num_turns = len(passages), len(turns)
    while True:
        shown = [
            PromptPassage(passage.chunk_id, plain(passage.document), plain(passage.text))
            for passage in passages[:num_passages]
        ]
        prompt = rag_prompt(plain(question), shown, turns[len(turns) - num_turns :])
        num_tokens = await context.generator.count_tokens(prompt)
        if num_tokens <= room:
            return _Fitted(prompt, num_tokens, num_passages, num_turns)
        if num_turns:
            num_turns -= 2
        elif num_passages > 1:
            num_passages -= 1
        else:
            return None


@traced
async def generate(state: RagState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the draft, streaming it on the way; a spent meter is returned as `stop_reason`.

    Raises:
        ServingError: The generator refused or failed.
    """
    context = runtime.context
    if reason := spent_meter(state, context, "generation"):
        return {"stop_reason": reason}
    passages = await passages_of(state, runtime)
    if not passages:
        return {"draft": ""}
    usage = state.get("usage", TokenUsage())
    budget, config = context.budget, context.config
    max_tokens = min(config.max_answer_tokens, budget.max_completion_tokens - usage.completion_tokens)
    window = (await context.generator.info()).max_model_len - max_tokens
    room = min(window, budget.max_prompt_tokens - usage.prompt_tokens)
    turns = history(state.get("turns", []), config.history_turns)
    fitted = await _fit(context, state["question"], passages, turns, room)
    if fitted is None:
        runtime.stream_writer(
            Warned(
                **context.stamp(),
                message=f"the question and one passage need more than the {room} tokens left",
            )
        )
        return {"stop_reason": "tokens"}
    if cut := _cut_message(fitted, len(passages), len(turns), room):
        runtime.stream_writer(Warned(**context.stamp(), message=cut))
    if context.remaining_s <= 0:
        return {"stop_reason": "deadline"}
    request = GenerateRequest(
        prompt=fitted.prompt,
        sampling=Sampling(max_tokens=max_tokens, temperature=config.temperature),
        request_id=f"{context.run_id}-{state.get('num_model_calls', 0)}",
        tenant=context.tenant,
        run_began_s=context.began_s,
        session=context.session,
        deadline_s=context.remaining_s,
        reuse=config.reuse,
    )
    written = await stream_text(request, runtime, fitted.num_tokens, SafeStream())
    return {
        "draft": written.text,
        "usage": written.usage,
        "num_model_calls": 1,
        "stop_reason": cut_reason(written.finish, is_budget_cut=max_tokens < config.max_answer_tokens),
        **({"hits": _as_shown(state.get("hits", []), written.chunk_order)} if written.chunk_order else {}),
    }


def _as_shown(hits: Sequence[Hit], chunk_order: Sequence[str]) -> list[Hit]:
    """Return the hits in the order the model read their passages, for its [n] to mean the same ones."""
    places = {chunk_id: place for place, chunk_id in enumerate(chunk_order)}
    return sorted(hits, key=lambda hit: places.get(hit.chunk_id, len(places)))


@dataclass(frozen=True, slots=True)
class Written:
    """What a generation came to."""

    text: str
    """All of it."""
    finish: FinishReason
    """Why it ended."""
    usage: TokenUsage
    """What it cost."""
    chunk_order: tuple[str, ...] = ()
    """Chunks in the order the model read them, where the generator chose it."""


class TextFilter(Protocol):
    """Decides what of a streamed text is shown, and when."""

    def push(self, text: str) -> str:
        """Return what can be shown now that `text` came."""
        ...

    def flush(self) -> str:
        """Return what is left to show at the end."""
        ...


async def stream_text(
    request: GenerateRequest, runtime: Runtime[RunContext], prompt_tokens: int, shown: TextFilter
) -> Written:
    """Return what was written, emitting what `shown` releases on the way.

    Raises:
        ServingError: The generator refused or failed.
    """
    context = runtime.context
    parts: list[str] = []
    num_tokens = 0
    finish: FinishReason = "deadline"
    usage: TokenUsage | None = None
    chunk_order: tuple[str, ...] = ()
    stream = context.generator.generate(request)
    async with AsyncExitStack() as stack:
        # Leaving this block by any way (end, error, cancellation) frees the request's slot in the engine.
        if hasattr(stream, "aclose"):
            stack.push_async_callback(stream.aclose)  # pyright: ignore[reportAttributeAccessIssue]
        limit = asyncio.timeout(context.remaining_s + DEADLINE_GRACE_S)
        try:
            async with limit:
                async for chunk in stream:
                    parts.append(chunk.text)
                    num_tokens += len(chunk.token_ids)
                    if settled := shown.push(chunk.text):
                        runtime.stream_writer(Token(**context.stamp(), text=settled))
                    finish = chunk.finish_reason or finish
                    usage = chunk.usage or usage
                    chunk_order = chunk.chunk_order
        except TimeoutError:
            if not limit.expired():
                raise
            finish = "deadline"
    if rest := shown.flush():
        runtime.stream_writer(Token(**context.stamp(), text=rest))
    return Written("".join(parts), finish, usage or TokenUsage(prompt_tokens, 0, num_tokens), chunk_order)


def cut_reason(finish: FinishReason, *, is_budget_cut: bool) -> StopReason | None:
    """Return the meter that cut a generation short, or None when it ended by itself or at its own limit."""
    if finish == "deadline" or finish == "cancelled":
        return finish
    return "tokens" if finish == "length" and is_budget_cut else None


def _cut_message(fitted: _Fitted, num_passages: int, num_turns: int, room: int) -> str:
    dropped = []
    if fitted.num_turns < num_turns:
        dropped.append(f"{(num_turns - fitted.num_turns) // 2} earlier exchange(s)")
    if fitted.num_passages < num_passages:
        dropped.append(f"{num_passages - fitted.num_passages} of {num_passages} passages")
    return f"left out of the prompt to fit {room} tokens: {' and '.join(dropped)}" if dropped else ""
