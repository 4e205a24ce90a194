"""Turns our values into vLLM's; imported only once vllm is wanted."""

from __future__ import annotations

from typing import overload

from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.registry import ModelRegistry
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.transformers_utils.config import get_config

from serving.chunk_kv.blend_plan import ChunkUse
from serving.driver import EngineAdapter, EngineFinish, EngineOutput, EngineRequest
from serving.types import Constraint

STRUCTURED_OUTPUTS = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
"""One for all requests: vLLM keeps the first it meets, and this one refuses what it cannot do. JSON is
compact: a small model spends all its tokens on line breaks where it may."""


def register_architecture(folder: str) -> None:
    """Register the model's class so that vLLM does not inspect it in a process of its own.

    vLLM inspects a class it has not met on this machine in a subprocess (13 s on two cores), to keep
    CUDA out of the parent; without CUDA the class can be imported here, where it is needed anyway.
    """
    for architecture in get_config(folder, trust_remote_code=False).architectures or ():
        registered = ModelRegistry.models.get(architecture)
        if registered is not None:
            ModelRegistry.register_model(architecture, registered.load_model_cls())


def kv_tokens(config: VllmConfig) -> int:
    """Return how many tokens of KV an engine that has started can hold."""
    return (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size


def sampling_params(request: EngineRequest, piece_tokens: int = 1) -> SamplingParams:
    """Return vLLM's sampling parameters.

    Args:
        request: What to generate.
        piece_tokens: Tokens to a piece of output, the first and the last piece apart; 1 or more.

    Raises:
        ValueError: vLLM refuses a value.
    """
    sampling = request.sampling
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        stop_token_ids=list(request.stop_token_ids),
        seed=sampling.seed,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=piece_tokens,
        logprobs=request.num_logprobs or None,
        structured_outputs=_structured(sampling.constraint),
        extra_args={"kv_transfer_params": request.blend.params()} if request.blend else None,
    )


def _structured(constraint: Constraint | None) -> StructuredOutputsParams | None:
    if constraint is None:
        return None
    if constraint.choices:
        return StructuredOutputsParams(choice=list(constraint.choices))
    if constraint.regex is not None:
        return StructuredOutputsParams(regex=constraint.regex)
    return StructuredOutputsParams(json=constraint.json_schema)


@overload
def lora_request(adapter: EngineAdapter) -> LoRARequest: ...
@overload
def lora_request(adapter: EngineAdapter | None) -> LoRARequest | None: ...
def lora_request(adapter: EngineAdapter | None) -> LoRARequest | None:
    """Return vLLM's form of an adapter."""
    return None if adapter is None else LoRARequest(adapter.name, adapter.number, adapter.folder)


def engine_prompt(request: EngineRequest) -> TokensInput:
    """Return vLLM's form of a tokenised prompt."""
    return tokens_input(request.token_ids, cache_salt=request.cache_salt)


def engine_output(output: RequestOutput) -> EngineOutput:
    """Return a piece of output made from vLLM's."""
    completion = output.outputs[0]
    return EngineOutput(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        num_cached_tokens=output.num_cached_tokens or 0,
        finish_reason=_finish_reason(completion.finish_reason),
        chunk_use=ChunkUse.from_params(output.kv_transfer_params),
        first_logprobs=_first_logprobs(completion),
    )


def _first_logprobs(completion: CompletionOutput) -> dict[int, float] | None:
    """Return log-probabilities of a piece's first token."""
    if not completion.logprobs:
        return None
    first = completion.logprobs[0]
    return {token: value.logprob for token, value in first.items()} if first else None


def _finish_reason(reason: str | None) -> EngineFinish | None:
    if reason in (None, "stop", "length", "abort", "error"):
        return reason
    raise RuntimeError(f"the engine ended a request with {reason!r}")
