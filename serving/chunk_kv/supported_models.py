"""Which models' KV can be moved and repaired as `ChunkKVConnector` does it; all others are refused."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding

from serving.chunk_kv.key_rotation import KeyRotation

_ROTATIONS = (RotaryEmbedding, Llama3RotaryEmbedding)
"""Embeddings whose angles are multiples of the position and which keep lengths."""


def refusal(model: Any, vllm_config: Any, attn_groups: Any) -> str | None:
    """Return why chunk KV is not used with a model, or None where it is.

    Args:
        model: vLLM's model.
        vllm_config: Its configuration.
        attn_groups: The runner's groups of attention layers.
    """
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        return "the model is split over several workers"
    if vllm_config.lora_config is not None:
        return "the engine takes adapters (serving.max_adapters), which repairs would be computed without"
    if vllm_config.speculative_config is not None:
        return "speculative decoding keeps a second cache"
    if len(attn_groups) != 1:
        return f"the model keeps KV in {len(attn_groups)} groups of blocks, not in one"
    if sum(len(group.layer_names) for group in attn_groups[0]) < 2:
        return "the model has a single attention layer"
    layers = vllm_config.compilation_config.static_forward_context
    for group in attn_groups[0]:
        for name in group.layer_names:
            if reason := _layer_refusal(layers[name]):
                return f"{name}: {reason}"
    kinds = {type(rope) for rope in _ropes(model)}
    strange = sorted(kind.__name__ for kind in kinds if kind not in _ROTATIONS)
    if strange or not kinds:
        return f"keys turned by {', '.join(strange) or 'no rotary embedding'} cannot be moved by a rotation"
    if len({(rope.base, rope.rotary_dim, rope.is_neox_style) for rope in _ropes(model)}) != 1:
        return "layers turn their keys differently"
    return None


def model_rotation(model: Any) -> KeyRotation:
    """Return the rotation of a model that is not refused."""
    rope = _ropes(model)[0]
    # The model's own table may be in half precision; this one is float32.
    with torch.device("cpu"):
        cos_sin = rope._compute_cos_sin_cache()
    return KeyRotation(cos_sin.to(rope.cos_sin_cache.device), is_neox_style=rope.is_neox_style)


def _ropes(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, RotaryEmbeddingBase)]


def _layer_refusal(layer: Any) -> str | None:
    impl = getattr(layer, "impl", None)
    if impl is None or not hasattr(impl, "do_kv_cache_update") or not hasattr(impl, "num_kv_heads"):
        return f"{type(impl).__name__} has no cache update of its own"
    if (getattr(impl, "sliding_window", None) or -1) not in (-1, (-1, -1)):
        return "attention sees a sliding window only"
    if getattr(impl, "kv_sharing_target_layer_name", None):
        return "the layer shares another layer's KV"
    if getattr(impl, "kv_cache_dtype", "auto") not in ("auto", "float16", "bfloat16", "float32"):
        return f"KV is kept as {impl.kv_cache_dtype}"
    if getattr(impl, "alibi_slopes", None) is not None:
        return "attention depends on distance (ALiBi)"
    return None
