"""How a generator is set up: which model, how much memory, how many requests."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from serving.chunk_kv.quality_gate import GateConfig

BUNDLED_MODEL = "graft-mini"
"""Name of the model that comes with this repository."""

MIB = 1 << 20
ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Ranks that vLLM sets memory aside for."""
BLOCK_SIZE_STEP = 32
"""vLLM's CPU attention kernel works on KV blocks of a multiple of this."""

Device = Literal["auto", "cpu", "cuda"]
Scheduling = Literal["fair", "first_come"]
KVCodec = Literal["none", "fine", "medium", "coarse"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


def usable_cores() -> int:
    """Return the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """Settings of one generator; checked when made."""

    model: str = BUNDLED_MODEL
    """`graft-mini` (bundled), a folder with safetensors and tokenizer.json, or a Hugging Face id."""
    max_model_len: int = 2048
    """Context window in tokens, prompt and output together, 64 to 1,048,576."""
    device: Device = "auto"
    """Where the model runs; `auto` takes the GPU when there is one."""
    dtype: DType = "auto"
    """Number format of weights and KV; `auto` is float32 on a CPU, the checkpoint's own on a GPU."""
    block_size: int = 32
    """Tokens per KV block, a multiple of 32; prefix reuse works in whole blocks."""
    kv_cache_bytes: int | None = None
    """Memory for KV blocks, 16 MiB or more; None is 512 MiB on a CPU and vLLM's share of a GPU."""
    gpu_memory_utilization: float | None = None
    """Part of a GPU's memory that vLLM may take, 0.05 to 0.98; None is vLLM's own default, or what the
    platform leaves it beside the index."""
    chunk_kv_bytes: int = 0
    """Host memory for the KV of chunks, which requests with `reuse.mode="blend"` take from, 0 or more; 0
    leaves chunk reuse out of the engine and serves such requests exactly."""
    chunk_kv_step_tokens: int = 1024
    """Most tokens that blended prompts compute in one step of the engine, 32 or more, so that others are held
    up little; what does not fit waits for the next step, and a prompt that needs more has one to itself."""
    chunk_kv_disk_bytes: int = 0
    """Disk space for the same beyond memory, 0 or more; goes with `chunk_kv_folder`."""
    chunk_kv_folder: str | None = None
    """Absolute path of a folder for chunks' KV on disk, of this generator alone; it survives a restart."""
    chunk_kv_codec: KVCodec = "none"
    """How that KV is written to disk: `none` as it is; `fine`, `medium` and `coarse` rounded to bins of an
    eighth, a quarter and half of a layer's typical value, in a seventh to a twelfth of float32's bytes. Files
    of every setting are read."""
    blend_gate: GateConfig = field(default_factory=GateConfig)
    """How blended answers are checked, and what ends blending."""
    max_adapters: int = 0
    """LoRA adapters loaded at once, 0 to 1,024; 0 leaves LoRA out of the engine. Chunks' KV is not blended
    in an engine that takes adapters."""
    max_adapter_rank: int = 16
    """Largest rank of an adapter: 8, 16, 32, 64, 128, 256 or 512; memory is set aside for it."""
    num_replicas: int = 1
    """Generators of this model that requests are routed over, 1 to 256; each takes memory, threads and a GPU
    of its own."""
    max_num_seqs: int = 32
    """Requests the engine works on at once, 1 to 1,024."""
    max_queued_requests: int = 256
    """Requests that may wait for a slot, 0 or more; one more is refused with `Overloaded`. Under `fair` a
    tenant is refused before, so that others find room: alone it gets four fifths of the places."""
    scheduling: Scheduling = "fair"
    """Who of those that wait is next: `fair` the tenant that was served least, `first_come` whoever came
    first, of any tenant."""
    tenant_weights: dict[str, float] = field(default_factory=dict)
    """Share of a tenant beside the others' under `fair`, > 0; 1 for those not named."""
    num_threads: int | None = None
    """OpenMP threads of the engine, 1 or more; None takes every usable core."""
    default_deadline_s: float | None = 300.0
    """Deadline of a request that names none, in seconds; None for no limit."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError(f"serving.model is empty; name a folder, a Hugging Face id or {BUNDLED_MODEL!r}")
        self._check_range("max_model_len", self.max_model_len, 64, 1 << 20)
        self._check_range("num_replicas", self.num_replicas, 1, 256)
        self._check_range("max_num_seqs", self.max_num_seqs, 1, 1024)
        self._check_range("max_queued_requests", self.max_queued_requests, 0, 1_000_000)
        if self.block_size < BLOCK_SIZE_STEP or self.block_size % BLOCK_SIZE_STEP:
            raise ValueError(
                f"serving.block_size must be a multiple of {BLOCK_SIZE_STEP}, got {self.block_size}"
            )
        if self.kv_cache_bytes is not None:
            self._check_range("kv_cache_bytes", self.kv_cache_bytes, 16 * MIB, 1 << 44)
        self._check_range("max_adapters", self.max_adapters, 0, 1024)
        if self.max_adapter_rank not in ADAPTER_RANKS:
            ranks = ", ".join(map(str, ADAPTER_RANKS))
            raise ValueError(f"serving.max_adapter_rank must be one of {ranks}, got {self.max_adapter_rank}")
        self._check_range("chunk_kv_bytes", self.chunk_kv_bytes, 0, 1 << 44)
        self._check_range("chunk_kv_step_tokens", self.chunk_kv_step_tokens, 32, 1 << 20)
        self._check_range("chunk_kv_disk_bytes", self.chunk_kv_disk_bytes, 0, 1 << 50)
        if bool(self.chunk_kv_disk_bytes) != bool(self.chunk_kv_folder):
            raise ValueError(
                "serving.chunk_kv_disk_bytes and serving.chunk_kv_folder go together, got "
                f"{self.chunk_kv_disk_bytes} and {self.chunk_kv_folder!r}; set both, or neither"
            )
        if self.chunk_kv_folder and not self.chunk_kv_bytes:
            raise ValueError("serving.chunk_kv_folder needs memory too: set serving.chunk_kv_bytes above 0")
        if self.chunk_kv_folder and not os.path.isabs(self.chunk_kv_folder):
            raise ValueError(
                f"serving.chunk_kv_folder must be an absolute path, got {self.chunk_kv_folder!r}: the "
                "generator runs in a process of its own, in another folder"
            )
        if self.chunk_kv_codec != "none" and not self.chunk_kv_folder:
            raise ValueError(
                f"serving.chunk_kv_codec is {self.chunk_kv_codec!r}, but nothing is written to disk: set "
                "serving.chunk_kv_folder and serving.chunk_kv_disk_bytes too, or leave the codec at 'none'"
            )
        if self.gpu_memory_utilization is not None and not 0.05 <= self.gpu_memory_utilization <= 0.98:
            raise ValueError(
                f"serving.gpu_memory_utilization must be in [0.05, 0.98], got {self.gpu_memory_utilization}"
            )
        if self.num_threads is not None:
            self._check_range("num_threads", self.num_threads, 1, 4096)
        if self.default_deadline_s is not None and self.default_deadline_s <= 0:
            raise ValueError(f"serving.default_deadline_s must be > 0, got {self.default_deadline_s}")
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"serving.tenant_weights must be > 0, got {weight} for {tenant!r}")
        for name, value, allowed in (
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16")),
            ("chunk_kv_codec", self.chunk_kv_codec, ("none", "fine", "medium", "coarse")),
            ("scheduling", self.scheduling, ("fair", "first_come")),
        ):
            if value not in allowed:
                raise ValueError(f"serving.{name} must be one of {', '.join(allowed)}, got {value!r}")

    @staticmethod
    def _check_range(name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"serving.{name} must be in [{low}, {high}], got {value}")

    @property
    def num_reserved_seqs(self) -> int:
        """Return the requests beyond `max_num_seqs` for tenants the engine does nothing for, under `fair`."""
        return self.max_num_seqs // 8 if self.scheduling == "fair" else 0

    @property
    def engine_threads(self) -> int:
        """Return the OpenMP threads the engine runs with."""
        return self.num_threads or usable_cores()
