"""The platform's language model as the graph's extractor needs it: a prompt to a text.

Retrieval knows no generator, so its shards are given this; it travels to their processes and finds the
generator from there, when the first chunk is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from retrieval.errors import TextModelRefused, TextModelUnavailable
from serving.errors import Overloaded, ServingRequestError, ServingUnavailable
from serving.prompt import Turn, chat_prompt
from serving.types import GenerateRequest, Generator, Sampling

PRIORITY = 20
"""A batch job: people who wait are served first."""
TENANT = "graph-extraction"
"""Nobody's own: what the engine keeps of these prompts is shared with no request of a tenant."""
OVERLOADED_TRIES = 5
"""Waits for room in the generator's queue before the chunk is put off."""


class GeneratorTextModel:
    """A `TextModel` over any `Generator`."""

    def __init__(self, name: str, find: Callable[[], Generator]) -> None:
        """Name the model.

        Args:
            name: What identifies it; another name makes another graph.
            find: Returns the generator; can be pickled where this travels. Raises TextModelUnavailable.
        """
        self._name = name
        self._find = find
        self._generator: Generator | None = None

    def __reduce__(self) -> tuple[type[GeneratorTextModel], tuple[str, Callable[[], Generator]]]:
        return GeneratorTextModel, (self._name, self._find)  # The other process finds its own way.

    @property
    def name(self) -> str:
        """Return what identifies the model."""
        return self._name

    async def complete(self, prompt: str, max_tokens: int) -> str:
        """Return the model's answer to a prompt; see `TextModel.complete`."""
        if self._generator is None:
            self._generator = self._find()
        request = GenerateRequest(
            chat_prompt([Turn("user", prompt)]),
            Sampling(max_tokens=max_tokens),
            tenant=TENANT,
            priority=PRIORITY,
        )
        for _ in range(OVERLOADED_TRIES):
            try:
                return await _text(self._generator, request)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s)
            except ServingRequestError as error:
                raise TextModelRefused(f"the language model does not take this chunk: {error}") from error
            except ServingUnavailable as error:
                self._generator = None
                raise TextModelUnavailable(f"the language model does not answer: {error}") from error
        raise TextModelUnavailable("the language model is busy with other requests; the chunks wait")


async def _text(generator: Generator, request: GenerateRequest) -> str:
    pieces: list[str] = []
    async with aclosing(generator.generate(request)) as chunks:  # pyright: ignore[reportArgumentType]
        async for chunk in chunks:
            pieces.append(chunk.text)
            if chunk.finish_reason in ("cancelled", "deadline"):
                raise TextModelUnavailable(f"the language model stopped early ({chunk.finish_reason})")
    return "".join(pieces)


def actor_text_model(name: str, actor: str, namespace: str) -> GeneratorTextModel:
    """Return the model behind a generator actor, which need not run yet.

    Args:
        name: What identifies the model.
        actor: The actor's name.
        namespace: Its Ray namespace.
    """
    return GeneratorTextModel(name, partial(_find_actor, actor, namespace))


def _find_actor(actor: str, namespace: str) -> Generator:
    import ray

    from serving.client import ActorGenerator

    try:
        return ActorGenerator(ray.get_actor(actor, namespace=namespace))
    except ValueError as error:
        raise TextModelUnavailable(
            'no generator runs yet, and retrieval.graph is "llm": chunks wait until the platform has one'
        ) from error
