"""The nodes of the search loop: a model's turn, what it is shown, an answer without tools, its citations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langgraph.runtime import Runtime

from agents.asked import Asked
from agents.context import RunContext
from agents.meters import CLOSING_STEPS, spent_meter
from agents.nodes.begin import begin
from agents.nodes.cite import cite_for
from agents.nodes.generate import cut_reason, generate, history, stream_text
from agents.nodes.retrieve import asked_before, find, passages_of
from agents.sanitise import SafeStream
from agents.search_loop.calls import Answer, Search
from agents.search_loop.loop import Hop, SearchLoop
from agents.search_loop.prompt import search_prompt
from agents.spans import traced
from agents.state import RagState, StopReason
from agents.words import words
from retrieval.types import Passage
from serving.types import GenerateRequest, KVReuse, Prompt, Sampling, TokenUsage

HOP_STEPS = 4
"""Supersteps a turn may lead to before the run can close: act, observe, retrieve, write."""
MIN_TURN_TOKENS = 32
"""A turn that could not have as many tokens is not taken."""
LOOP_SHARE = 0.75
"""Share of the deadline the loop may begin turns in; the rest is for the answer."""

_ANSWER = re.compile(r"\s*answer[ \t]*:\s*", re.IGNORECASE)
_MAYBE_ANSWER = re.compile(r"\s*(?:a(?:n(?:s(?:w(?:e(?:r(?:[ \t]*:?\s*)?)?)?)?)?)?)?\Z", re.IGNORECASE)


class MultiHopState(RagState, total=False):
    """What the loop keeps beside the state of every retrieval graph."""

    hops: list[Hop]
    """Turns of the model in this run that were no answer; no passage text."""
    turn: str
    """The turn that was written and not followed yet; empty when there is none."""
    is_turn_cut: bool
    """Whether it reached its token limit."""
    closing: StopReason | None
    """The meter that ended the loop early; None while it goes on or ended by itself."""


def loop_of(state: MultiHopState, context: RunContext) -> SearchLoop:
    """Return the loop where the state left it."""
    return SearchLoop(context.config.search_loop, tuple(state.get("hops", [])))


@traced
async def begin_loop(state: MultiHopState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the state of a fresh run, with no turn taken.

    Raises:
        InvalidQuestion: The question is empty or too long.
    """
    return {**await begin(state, runtime), "hops": [], "turn": "", "is_turn_cut": False, "closing": None}


class AnswerStream:
    """Shows a turn only where it is an answer, without the words `answer:`."""

    def __init__(self) -> None:
        self._begun = ""
        self._is_answer: bool | None = None
        self._safe = SafeStream()

    def push(self, text: str) -> str:
        """Return what of the answer can be shown now."""
        if self._is_answer is None:
            self._begun += text
            found = _ANSWER.match(self._begun)
            if found is not None and found.end() < len(self._begun):
                self._is_answer, text = True, self._begun[found.end() :]
            elif found is None and not _MAYBE_ANSWER.match(self._begun):
                self._is_answer = False
        return self._safe.push(text) if self._is_answer else ""

    def flush(self) -> str:
        """Return the rest of the answer."""
        return self._safe.flush() if self._is_answer else ""


def closing_meter(state: MultiHopState, context: RunContext) -> StopReason | None:
    """Return the meter that forbids one more turn, keeping back what the closing answer needs."""
    budget = context.budget
    if context.remaining_s < budget.deadline_s * (1 - LOOP_SHARE):
        return "deadline"
    if state.get("remaining_steps", CLOSING_STEPS + HOP_STEPS) < CLOSING_STEPS + HOP_STEPS:
        return "steps"
    if state.get("num_model_calls", 0) + 1 >= budget.max_model_calls:
        return "model_calls"
    left = budget.max_completion_tokens - state.get("usage", TokenUsage()).completion_tokens
    return "tokens" if left < 2 * MIN_TURN_TOKENS else None


async def _fit(state: MultiHopState, runtime: Runtime[RunContext], room: int) -> tuple[Prompt, int] | None:
    """Return the prompt of the next turn and its length; earlier exchanges are left out until it fits."""
    context = runtime.context
    loop = loop_of(state, context)
    passages = {passage.chunk_id: passage for passage in await passages_of(state, runtime)}
    turns = history(state.get("turns", []), context.config.history_turns)
    while True:
        prompt = search_prompt(state["question"], loop, passages, turns)
        num_tokens = await context.generator.count_tokens(prompt)
        if num_tokens <= room:
            return prompt, num_tokens
        if not turns:
            return None
        turns = turns[2:]


@traced
async def act(state: MultiHopState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the model's next turn: a draft where it answers, else a `turn` to follow.

    A meter that leaves room only for the closing answer is returned as `closing`, a spent one as
    `stop_reason`.

    Raises:
        ServingError: The generator refused or failed.
    """
    context = runtime.context
    if reason := spent_meter(state, context, "generation"):
        return {"turn": "", "stop_reason": reason}
    if reason := closing_meter(state, context):
        return {"turn": "", "closing": reason}
    usage, budget, config = state.get("usage", TokenUsage()), context.budget, context.config
    left = budget.max_completion_tokens - usage.completion_tokens
    max_tokens = min(config.max_answer_tokens, left - min(config.max_answer_tokens, left // 2))
    window = (await context.generator.info()).max_model_len - max_tokens
    # The closing answer reads about as much as this turn.
    room = min(window, (budget.max_prompt_tokens - usage.prompt_tokens) // 2)
    fitted = await _fit(state, runtime, room)
    if fitted is None:
        return {"turn": "", "closing": "tokens"}
    prompt, num_tokens = fitted
    request = GenerateRequest(
        prompt=prompt,
        sampling=Sampling(max_tokens=max_tokens, temperature=config.temperature),
        request_id=f"{context.run_id}-{state.get('num_model_calls', 0)}",
        tenant=context.tenant,
        run_began_s=context.began_s,
        session=context.session,
        deadline_s=context.remaining_s,
        # The numbers of passages are what the loop's calls name: they keep their places.
        reuse=config.reuse if config.reuse.mode != "reorder" else KVReuse(),
    )
    written = await stream_text(request, runtime, num_tokens, AnswerStream())
    spent = {"usage": written.usage, "num_model_calls": 1}
    is_cut = written.finish != "stop"
    call = loop_of(state, context).decide(written.text, is_cut=is_cut)
    if isinstance(call, Answer):
        is_budget_cut = max_tokens < config.max_answer_tokens
        return {
            **spent,
            "turn": "",
            "draft": call.text,
            "stop_reason": cut_reason(written.finish, is_budget_cut=is_budget_cut),
        }
    if written.finish in ("deadline", "cancelled"):
        return {**spent, "turn": "", "stop_reason": written.finish}
    return {**spent, "turn": written.text, "is_turn_cut": is_cut}


@traced
async def observe(state: MultiHopState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the loop with the turn followed: hits and passages of all turns so far, numbered in order.

    Raises:
        RetrievalError: The search failed.
    """
    context = runtime.context
    loop = loop_of(state, context)
    text = state.get("turn", "")
    call = loop.decide(text, is_cut=state.get("is_turn_cut", False))
    if isinstance(call, Answer):
        raise ValueError("an answer has nothing to observe; route it to its citations")
    if not isinstance(call, Search):
        return {"turn": "", "hops": list(loop.after(text, call).hops)}
    if reason := spent_meter(state, context, "retrieval"):
        return {"turn": "", "closing": reason}
    spent = {"turn": "", "queries": [*state.get("queries", []), call.query], "num_retrievals": 1}
    held = {passage.chunk_id: passage for passage in await passages_of(state, runtime)}
    hits = state.get("hits", [])
    found = await find(call.query, runtime, loop.limits.k_passages, [hit.chunk_id for hit in hits])
    if found is None:
        return {**spent, "stop_reason": "deadline"}
    new_hits, new_passages = found
    return {
        **spent,
        "hops": list(loop.after(text, call, [hit.chunk_id for hit in new_hits]).hops),
        "hits": [*hits, *new_hits],
        "passages": {**held, **{passage.chunk_id: passage for passage in new_passages}},
    }


@traced
async def write(state: MultiHopState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return a draft written without tools from everything found; it keeps the meter that ended the loop.

    Raises:
        ServingError: The generator refused or failed.
    """
    written = await generate(state, runtime)
    return {**written, "stop_reason": written.get("stop_reason") or state.get("closing")}


def readings(state: MultiHopState, passages: Mapping[str, Passage]) -> list[Asked]:
    """Return what the answer may be about: the question, and queries that the hops before them led to.

    "Where was its designer born?" is answered by a sentence that shares one word with it; the hop that found
    the designer's name makes it a question about that name. A query counts only when each of its words was
    read in the question or in a passage an earlier hop showed: a guess of the model is left out.
    """
    question = Asked.read(state["question"], asked_before(state.get("turns", [])))
    known = {word.stem for word in words(state["question"])}
    found = [question]
    for hop in state.get("hops", []):
        query = [word.stem for word in words(hop.query) if word.is_content]
        if query and known.issuperset(query):
            found.append(Asked.read(hop.query))
        for chunk_id in hop.shown:
            if passage := passages.get(chunk_id):
                known |= {word.stem for word in words(f"{passage.document} {passage.text}")}
    return found


@traced
async def cite_hops(state: MultiHopState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """Return the answer with citations into the passages of all hops, or an empty one when none holds it."""
    passages = {passage.chunk_id: passage for passage in await passages_of(state, runtime)}
    return await cite_for(readings(state, passages), state, runtime)
