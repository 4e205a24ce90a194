"""What a generator does for blending besides answering: it computes what was missing, and checks answers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from serving.chunk_kv.blend_plan import BlendPlan, ChunkUse
from serving.chunk_kv.idle_work import IdleWork, run_to_end
from serving.chunk_kv.prompt_chunks import PromptChunks
from serving.chunk_kv.quality_gate import CheckedAnswer, QualityGate, compare
from serving.driver import Driver, EngineRequest
from serving.request_limits import MAX_PRIORITY
from serving.types import Sampling

logger = logging.getLogger(__name__)

CHECKED_TOKENS = 128
"""Most tokens of an answer that is made again to be checked: enough to cite what it rests on."""
CHECKED_LOGPROBS = 20
"""Likeliest first tokens that are compared then."""


class Blending:
    """Work for times at which the engine is idle, and whether requests are blended at all.

    Args:
        driver: The engine, started.
        gate: Judges blended answers.
        decode: Returns the text of tokens.
        on_check: Called after each judgement.
    """

    def __init__(
        self,
        driver: Driver,
        gate: QualityGate,
        decode: Callable[[Sequence[int]], str],
        on_check: Callable[[QualityGate], None],
    ) -> None:
        self._driver = driver
        self._gate = gate
        self._decode = decode
        self._on_check = on_check
        self._idle = IdleWork(driver)

    @property
    def off_reason(self) -> str | None:
        """Return why requests are served exactly, or None where chunks are blended."""
        return self._driver.no_blend_reason or self._gate.closed_reason

    def make_way(self) -> None:
        """Abort what is under way, since a request has come; it is done again after."""
        self._idle.make_way()

    async def wait(self) -> None:
        """Wait until chunks asked for so far are computed and answers drawn for it are checked."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Forget what waits and cancel what runs."""
        await self._idle.stop()

    def after(self, request: EngineRequest, chunks: PromptChunks, use: ChunkUse, exact_salt: str) -> None:
        """Have the chunks computed that a request would have liked to load, and some answers checked.

        Args:
            request: One that has ended.
            chunks: Its chunks.
            use: What became of them.
            exact_salt: `cache_salt` of exact requests of the same tenant.
        """
        in_background = replace(request, cache_salt=exact_salt, priority=MAX_PRIORITY, blend=None)
        for span in chunks.spans:
            if span.key in use.missing:
                token_ids, place = chunks.alone(span, request.token_ids)
                capture = replace(
                    in_background,
                    request_id=uuid.uuid4().hex,
                    token_ids=token_ids,
                    sampling=Sampling(max_tokens=1),
                    blend=BlendPlan(capture=(place,)),
                )
                self._idle.add(span.key, partial(run_to_end, self._driver, capture))
        if use.loaded and self._gate.wants_check():
            greedy = Sampling(max_tokens=min(CHECKED_TOKENS, request.sampling.max_tokens))
            exact = replace(in_background, sampling=greedy, num_logprobs=CHECKED_LOGPROBS)
            blended = replace(exact, cache_salt=request.cache_salt, blend=request.blend)
            self._idle.add(f"check {request.request_id}", partial(self._check, exact, blended))

    async def _check(self, exact: EngineRequest, blended: EngineRequest) -> None:
        """Generate an answer both ways and tell the gate."""
        answers = []
        for request in (exact, blended):
            output = await run_to_end(self._driver, replace(request, request_id=uuid.uuid4().hex))
            text = self._decode(output.token_ids)
            answers.append(CheckedAnswer(output.token_ids, output.first_logprobs or {}, text))
        self._gate.record(compare(*answers))
        self._on_check(self._gate)
        if self._gate.closed_reason is not None:
            logger.warning("%s", self._gate.closed_reason)
