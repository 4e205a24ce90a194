"""A generator as a langchain chat model, for graphs and chains that expect one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel, agenerate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from serving.errors import InvalidGeneration
from serving.prompt import Role, Turn, chat_prompt
from serving.types import GeneratedChunk, GenerateRequest, Generator, Sampling, TokenUsage

ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}
"""Our role of each langchain message type."""


class GeneratorChatModel(BaseChatModel):
    """Streams a `Generator` through langchain's interface; made by `as_chat_model`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    generator: Any
    """The `Generator`."""
    sampling: Sampling = Sampling()
    """Defaults; `max_tokens`, `temperature`, `top_p`, `seed` and `stop` can be given per call."""
    tenant: str = "default"
    """Whose requests these are."""
    deadline_s: float | None = None
    """Deadline of each request in seconds."""

    @property
    def _llm_type(self) -> str:
        return "graft"

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = GenerateRequest(
            chat_prompt([_turn(message) for message in messages]),
            self._sampling(stop, kwargs),
            tenant=self.tenant,
            deadline_s=self.deadline_s,
        )
        async with aclosing(self.generator.generate(request)) as chunks:
            async for chunk in chunks:
                piece = _piece(chunk)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=piece)
                yield piece

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))

    def _sampling(self, stop: list[str] | None, given: dict[str, Any]) -> Sampling:
        own = self.sampling
        return Sampling(
            max_tokens=given.get("max_tokens", own.max_tokens),
            temperature=given.get("temperature", own.temperature),
            top_p=given.get("top_p", own.top_p),
            stop=tuple(stop) if stop is not None else own.stop,
            seed=given.get("seed", own.seed),
        )


def _turn(message: BaseMessage) -> Turn:
    role = ROLES.get(message.type)
    if role is None or not isinstance(message.content, str):
        raise InvalidGeneration(
            f"A {message.type!r} message with {type(message.content).__name__} content cannot be served; "
            f"send text in messages of type {', '.join(ROLES)}."
        )
    return Turn(role, message.content)


def _piece(chunk: GeneratedChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=chunk.text,
            usage_metadata=_usage(chunk.usage) if chunk.usage is not None else None,
            response_metadata={"finish_reason": chunk.finish_reason} if chunk.finish_reason else {},
        )
    )


def _usage(usage: TokenUsage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def as_chat_model(
    generator: Generator,
    *,
    sampling: Sampling | None = None,
    tenant: str = "default",
    deadline_s: float | None = None,
) -> BaseChatModel:
    """Return a langchain chat model that streams from a generator.

    Args:
        generator: Any `Generator`.
        sampling: Defaults of each call.
        tenant: Whose requests these are.
        deadline_s: Deadline of each request in seconds.
    """
    return GeneratorChatModel(
        generator=generator, sampling=sampling or Sampling(), tenant=tenant, deadline_s=deadline_s
    )
