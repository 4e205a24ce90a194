"""Turns our values into vLLM's; imported only once vllm is wanted."""

from __future__ import annotations

from typing import Any

from vllm.inputs.engine import TokensInput, tokens_input
from vllm.model_executor.models.registry import ModelRegistry
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.transformers_utils.config import get_config

from serving.config import MIB, ServingConfig
from serving.driver import EngineFinish, EngineOutput, EngineRequest

CPU_KV_CACHE_BYTES = 512 * MIB

CPU_BATCHED_TOKENS = 2048
"""Most tokens of one step on a CPU, where a step of that size takes about half a second."""


def engine_arguments(config: ServingConfig, folder: str, *, on_gpu: bool) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's `EngineArgs`.

    Eager mode and an explicit KV size skip vLLM's warm-up on a CPU; a GPU gains more from CUDA graphs
    than their capture costs.
    """
    kv_cache_bytes = config.kv_cache_bytes if on_gpu else config.kv_cache_bytes or CPU_KV_CACHE_BYTES
    dtype = "float32" if config.dtype == "auto" and not on_gpu else config.dtype
    # On a CPU a seeded request whose prefill is split kills vLLM 0.32 ("CPU Generator does not use offset").
    whole_prefills = {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(config.max_model_len, CPU_BATCHED_TOKENS),
    }
    return {
        "model": folder,
        "served_model_name": config.model,
        "max_model_len": config.max_model_len,
        "dtype": dtype,
        "block_size": config.block_size,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": True,
        "enforce_eager": not on_gpu,
        "scheduling_policy": "priority",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **({} if on_gpu else whole_prefills),
    }


def register_architecture(folder: str) -> None:
    """Register the model's class so that vLLM does not inspect it in a process of its own.

    vLLM inspects a class it has not met on this machine in a subprocess (13 s on two cores), to keep
    CUDA out of the parent; without CUDA the class can be imported here, where it is needed anyway.
    """
    for architecture in get_config(folder, trust_remote_code=False).architectures or ():
        registered = ModelRegistry.models.get(architecture)
        if registered is not None:
            ModelRegistry.register_model(architecture, registered.load_model_cls())


def sampling_params(request: EngineRequest) -> SamplingParams:
    """Return vLLM's sampling parameters.

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
    )


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
    )


def _finish_reason(reason: str | None) -> EngineFinish | None:
    if reason in (None, "stop", "length", "abort"):
        return reason
    raise RuntimeError(f"the engine ended a request with {reason!r}")
