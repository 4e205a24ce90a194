"""A generator that writes what it is told and keeps every promise of the `Generator` protocol.

The contract suite runs over it and over the real engine, so that it cannot lie about one.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncGenerator, Callable

import jsonschema

from serving.errors import GeneratorUnavailable, InvalidGeneration, Overloaded, PromptTooLong
from serving.fair_queue import OUTPUT_WEIGHT, FairQueue
from serving.passage_order import PassageArranger, chunk_ids
from serving.types import (
    Constraint,
    FinishReason,
    GeneratedChunk,
    GenerateRequest,
    GeneratorInfo,
    GeneratorStats,
    Prompt,
    TokenUsage,
)

BLOCK_SIZE = 32
"""Cached tokens come in whole blocks, as in the engine."""


class ScriptedGenerator:
    """Streams a script; one character is one token.

    Args:
        script: The text to write, or a function from request to text.
        max_model_len: Context window in tokens.
        max_num_seqs: Requests served at once; the others wait.
        max_queued_requests: Requests that may wait.
        token_delay_s: Seconds per token.
    """

    def __init__(
        self,
        script: str | Callable[[GenerateRequest], str],
        *,
        max_model_len: int = 2048,
        max_num_seqs: int = 32,
        max_queued_requests: int = 256,
        token_delay_s: float = 0.0,
    ) -> None:
        self.script = script
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_queued_requests = max_queued_requests
        self.token_delay_s = token_delay_s
        self.requests: list[GenerateRequest] = []
        """Every request accepted, in order."""
        self.failure: str | None = None
        """Set it to make the generator die: requests under way and new ones fail with it."""
        self._active: set[str] = set()
        self._arranger = PassageArranger(10_000)
        self._queue = FairQueue(max_num_seqs, max_queued_requests, num_reserved=max_num_seqs // 8)
        self._cached: dict[str, list[str]] = {}
        self._num_finished = 0
        self._num_cancelled = 0
        self._usage = TokenUsage()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """Stream the script's text for one request."""
        clock = asyncio.get_running_loop().time
        ends_at = None if request.deadline_s is None else clock() + request.deadline_s
        request_id = self._accept(request)
        ticket = self._queue.admit(request.tenant, request.priority, request.run_began_s)
        usage = TokenUsage(prompt_tokens=len(request.prompt.text))
        reason: FinishReason | None = "cancelled"
        text, natural = self._text(request, usage.prompt_tokens)
        shown, chunk_order = self._arrange(request)
        try:
            try:
                async with asyncio.timeout_at(ends_at):
                    await self._queue.enter(ticket, usage.prompt_tokens)
                usage = TokenUsage(
                    usage.prompt_tokens,
                    self._reuse(request.tenant, shown),
                    reordered=shown != request.prompt.text,
                )
                for character in text:
                    async with asyncio.timeout_at(ends_at):
                        await asyncio.sleep(self.token_delay_s)
                    self._check_alive()
                    usage += TokenUsage(completion_tokens=1)
                    self._queue.charge(ticket, OUTPUT_WEIGHT)
                    yield GeneratedChunk(character, (ord(character),))
                reason = natural
            except TimeoutError:
                reason = "deadline"
            except GeneratorUnavailable:
                reason = None
                raise
            yield GeneratedChunk("", (), reason, usage, chunk_order)
        finally:
            self._queue.leave(ticket)
            self._active.discard(request_id)
            self._usage += usage
            self._num_finished += reason in ("stop", "length")
            self._num_cancelled += reason in ("cancelled", "deadline")

    def _accept(self, request: GenerateRequest) -> str:
        self._check_alive()
        if (refusal := self._queue.refusal(request.tenant)) is not None:
            raise Overloaded(refusal, 0.5)
        if request.request_id in self._active:
            raise InvalidGeneration(f"Request id {request.request_id!r} is under way already")
        num_tokens = len(request.prompt.text)
        if num_tokens >= self.max_model_len:
            raise PromptTooLong(
                f"The prompt has {num_tokens} tokens and the context window {self.max_model_len}; shorten it"
            )
        request_id = request.request_id or uuid.uuid4().hex
        self._active.add(request_id)
        self.requests.append(request)
        return request_id

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise GeneratorUnavailable(self.failure)

    def _text(self, request: GenerateRequest, prompt_tokens: int) -> tuple[str, FinishReason]:
        text = self.script if isinstance(self.script, str) else self.script(request)
        text = _constrained(text, request.sampling.constraint)
        limit = min(request.sampling.max_tokens, self.max_model_len - prompt_tokens)
        stops = [at for stop in request.sampling.stop if 0 <= (at := text.find(stop)) <= limit]
        if stops:
            return text[: min(stops)], "stop"
        return (text[:limit], "length") if len(text) >= limit else (text, "stop")

    def _arrange(self, request: GenerateRequest) -> tuple[str, tuple[str, ...]]:
        """Return the prompt as the model reads it, and its chunks' order where that was chosen."""
        if request.reuse.mode != "reorder":
            return request.prompt.text, ()
        ids = [[ord(character) for character in segment.text] for segment in request.prompt.segments]
        sources = self._arranger.arrange(request.prompt, ids, request.reuse.order, request.tenant)
        arranged = Prompt(tuple(request.prompt.segments[source] for source in sources))
        return arranged.text, chunk_ids(arranged)

    def _reuse(self, tenant: str, text: str) -> int:
        cached = 0
        for earlier in self._cached.setdefault(tenant, []):
            shared = next((i for i, (a, b) in enumerate(zip(text, earlier, strict=False)) if a != b), None)
            shared = min(len(text), len(earlier)) if shared is None else shared
            cached = max(cached, min(shared, len(text) - 1) // BLOCK_SIZE * BLOCK_SIZE)
        self._cached[tenant].append(text)
        return cached

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return the prompt's length in characters."""
        return len(prompt.text)

    async def info(self) -> GeneratorInfo:
        """Return what it calls itself."""
        return GeneratorInfo("scripted", "0" * 16, "0" * 16, self.max_model_len)

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals."""
        return GeneratorStats(
            num_running=len(self._active) - self._queue.num_waiting,
            num_waiting=self._queue.num_waiting,
            num_finished=self._num_finished,
            num_cancelled=self._num_cancelled,
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=self._usage.cached_tokens,
            completion_tokens=self._usage.completion_tokens,
        )


def _constrained(text: str, constraint: Constraint | None) -> str:
    """Return a text that keeps a constraint: the script's where it does, or else the first choice."""
    if constraint is None or text in constraint.choices:
        return text
    if constraint.choices:
        return constraint.choices[0]
    if constraint.regex is not None:
        assert re.fullmatch(constraint.regex, text), "the script does not match"
    elif constraint.json_schema is not None:
        jsonschema.validate(json.loads(text), json.loads(constraint.json_schema))
    return text
