"""Serving: prompts in, streamed text out, from one vLLM engine per generator.

Names are loaded on first use: importing this package loads neither torch, vllm, ray nor langchain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.actor import ActorReady, GeneratorActor, start_generator
    from serving.chat_model import as_chat_model
    from serving.client import ActorGenerator
    from serving.config import ServingConfig
    from serving.environment import engine_environment
    from serving.errors import (
        GeneratorUnavailable,
        InvalidAdapter,
        InvalidGeneration,
        ModelUnusable,
        Overloaded,
        PromptTooLong,
        ServingError,
        ServingRequestError,
        ServingUnavailable,
        UnknownAdapter,
    )
    from serving.generator import LocalGenerator
    from serving.health import GeneratorHealth
    from serving.prompt import PromptPassage, Turn, chat_prompt, encode_prompt, rag_prompt
    from serving.routing.routed_generator import RoutedGenerator
    from serving.tokenizer import ModelTokenizer
    from serving.types import (
        AdapterInfo,
        Constraint,
        GeneratedChunk,
        GenerateRequest,
        Generator,
        GeneratorInfo,
        GeneratorStats,
        KVReuse,
        Prompt,
        Sampling,
        Segment,
        TokenUsage,
    )

_HOMES = {
    "serving.actor": ("ActorReady", "GeneratorActor", "start_generator"),
    "serving.chat_model": ("as_chat_model",),
    "serving.client": ("ActorGenerator",),
    "serving.config": ("ServingConfig",),
    "serving.environment": ("engine_environment",),
    "serving.errors": (
        "GeneratorUnavailable",
        "InvalidAdapter",
        "InvalidGeneration",
        "ModelUnusable",
        "Overloaded",
        "PromptTooLong",
        "ServingError",
        "ServingRequestError",
        "ServingUnavailable",
        "UnknownAdapter",
    ),
    "serving.generator": ("LocalGenerator",),
    "serving.health": ("GeneratorHealth",),
    "serving.prompt": ("PromptPassage", "Turn", "chat_prompt", "encode_prompt", "rag_prompt"),
    "serving.routing.routed_generator": ("RoutedGenerator",),
    "serving.tokenizer": ("ModelTokenizer",),
    "serving.types": (
        "AdapterInfo",
        "Constraint",
        "GenerateRequest",
        "GeneratedChunk",
        "Generator",
        "GeneratorInfo",
        "GeneratorStats",
        "KVReuse",
        "Prompt",
        "Sampling",
        "Segment",
        "TokenUsage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ActorGenerator",
    "ActorReady",
    "AdapterInfo",
    "Constraint",
    "GenerateRequest",
    "GeneratedChunk",
    "Generator",
    "GeneratorActor",
    "GeneratorHealth",
    "GeneratorInfo",
    "GeneratorStats",
    "GeneratorUnavailable",
    "InvalidAdapter",
    "InvalidGeneration",
    "KVReuse",
    "LocalGenerator",
    "ModelTokenizer",
    "ModelUnusable",
    "Overloaded",
    "Prompt",
    "PromptPassage",
    "PromptTooLong",
    "RoutedGenerator",
    "Sampling",
    "Segment",
    "ServingConfig",
    "ServingError",
    "ServingRequestError",
    "ServingUnavailable",
    "TokenUsage",
    "Turn",
    "UnknownAdapter",
    "as_chat_model",
    "chat_prompt",
    "encode_prompt",
    "engine_environment",
    "rag_prompt",
    "start_generator",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
