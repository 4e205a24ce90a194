"""What vLLM's engine is started with; imports vLLM only where chunks' KV is kept or events are published."""

from __future__ import annotations

from typing import Any

from serving.config import MIB, ServingConfig

CPU_KV_CACHE_BYTES = 512 * MIB

CPU_BATCHED_TOKENS = 2048
"""Most tokens of one step on a CPU, where a step of that size takes about half a second."""

MAX_ADAPTERS_OF_A_STEP = 8
"""Adapters whose requests run together on a GPU; each takes its room there, the others wait in memory."""


def engine_arguments(
    config: ServingConfig, folder: str, *, on_gpu: bool, kv_events: str | None = None
) -> dict[str, Any]:
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
        "max_num_seqs": config.max_num_seqs + config.num_reserved_seqs,
        "enable_prefix_caching": True,
        "enforce_eager": not on_gpu,
        "scheduling_policy": "priority",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **(_share_of_gpu(config) if on_gpu else whole_prefills),
        **_chunk_kv(config),
        **_adapters(config, on_gpu=on_gpu),
        **_kv_events(kv_events),
    }


def _kv_events(endpoint: str | None) -> dict[str, Any]:
    if endpoint is None:
        return {}
    from vllm.config import KVEventsConfig

    events = KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint)
    return {"kv_events_config": events}


def _adapters(config: ServingConfig, *, on_gpu: bool) -> dict[str, Any]:
    if not config.max_adapters:
        return {}
    # vLLM 0.32's CPU code takes "no adapter", -1, for the last slot: that one is kept empty, so that requests
    # of the model alone get nothing added. Slots are filled from the first.
    slots = min(config.max_adapters, MAX_ADAPTERS_OF_A_STEP) if on_gpu else config.max_adapters + 1
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(config.max_adapters, slots),
        "max_lora_rank": config.max_adapter_rank,
    }


def _chunk_kv(config: ServingConfig) -> dict[str, Any]:
    if not config.chunk_kv_bytes:
        return {}
    from vllm.config import KVTransferConfig

    return {
        "kv_transfer_config": KVTransferConfig(
            kv_connector="ChunkKVConnector",
            kv_connector_module_path="serving.chunk_kv.connector",
            kv_role="kv_both",
            kv_connector_extra_config={
                "memory_bytes": config.chunk_kv_bytes,
                "disk_bytes": config.chunk_kv_disk_bytes,
                "folder": config.chunk_kv_folder,
                "step_tokens": config.chunk_kv_step_tokens,
                "codec": config.chunk_kv_codec,
            },
        ),
        "worker_extension_cls": "serving.chunk_kv.engine_extension.ChunkKVWorker",
    }


def _share_of_gpu(config: ServingConfig) -> dict[str, Any]:
    share = config.gpu_memory_utilization
    return {} if share is None else {"gpu_memory_utilization": share}
