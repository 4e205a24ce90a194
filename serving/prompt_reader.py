"""From a prompt to what the model reads: its tokens, with the passages in the order that is wanted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import chain

from serving.errors import InvalidGeneration, PromptTooLong
from serving.passage_order import PassageArranger, chunk_ids
from serving.prompt import encode_segments
from serving.tokenizer import ModelTokenizer
from serving.types import GenerateRequest, Prompt

LONG_PROMPT_CHARS = 20_000
"""Longer prompts are encoded off the event loop, so that others keep streaming."""


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt as the model reads it."""

    prompt: Prompt
    """Its segments in the order they are read."""
    segment_ids: list[list[int]]
    """Token ids of each."""
    chunk_order: tuple[str, ...] = ()
    """Chunks in the order they are read, where that was chosen."""
    reordered: bool = False
    """Whether it is another order than they were given in."""
    token_ids: list[int] = field(init=False)
    """All of them, not empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", list(chain.from_iterable(self.segment_ids)))


class PromptReader:
    """Encodes prompts and arranges their passages.

    Args:
        tokenizer: The model's.
        max_model_len: Context window in tokens.
        kv_tokens: Tokens of KV the engine can hold.
    """

    def __init__(self, tokenizer: ModelTokenizer, max_model_len: int, kv_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._kv_tokens = kv_tokens
        self._arranger = PassageArranger(kv_tokens)

    def forget(self) -> None:
        """Forget which prompts came, since the engine forgets their KV."""
        self._arranger = PassageArranger(self._kv_tokens)

    async def encode(self, prompt: Prompt) -> list[list[int]]:
        """Return token ids segment by segment.

        Raises:
            InvalidGeneration: The prompt holds a lone surrogate.
        """
        try:
            if sum(len(segment.text) for segment in prompt.segments) > LONG_PROMPT_CHARS:
                return await asyncio.to_thread(encode_segments, prompt, self._tokenizer)
            return encode_segments(prompt, self._tokenizer)
        except UnicodeEncodeError as error:
            raise InvalidGeneration(
                f"The prompt holds a lone surrogate ({error}), which is no character; "
                "decode the text with errors='replace' before sending it."
            ) from error

    async def read(self, request: GenerateRequest) -> ReadPrompt:
        """Return a request's prompt as the model will read it.

        Raises:
            InvalidGeneration: The prompt is empty or holds a lone surrogate.
            PromptTooLong: It leaves no room for one token.
        """
        prompt = request.prompt
        read = ReadPrompt(prompt, await self.encode(prompt))
        if not read.token_ids:
            raise InvalidGeneration("The prompt is empty; give it at least one segment with text.")
        if len(read.token_ids) >= self._max_model_len:
            raise PromptTooLong(
                f"The prompt has {len(read.token_ids)} tokens and the context window {self._max_model_len} "
                "(serving.max_model_len), which must also hold at least one generated token; "
                "send fewer or shorter passages, or serve a model with a longer window."
            )
        if request.reuse.mode == "reorder":
            kept_apart = f"{request.tenant}\0{request.adapter or ''}"
            sources = self._arranger.arrange(prompt, read.segment_ids, request.reuse.order, kept_apart)
            arranged = Prompt(tuple(prompt.segments[source] for source in sources))
            read = ReadPrompt(
                arranged,
                [read.segment_ids[source] for source in sources],
                chunk_ids(arranged),
                reordered=arranged != prompt,
            )
        return read
