"""Who gets how much of a GPU that the language model, the embedder and the index share.

vLLM takes nine tenths of a device unless told, whatever an index was promised there. So the device is divided
once, before anything starts: vLLM is given its share, every base segment of vectors its limit, and together
with an allowance for the embedder and for what CUDA takes itself they stay below the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from graft.config import GraftConfig
from graft.errors import ConfigError, StartError

GIB = 2**30
RETRIEVAL_SHARE = 0.25
"""Part of the device for base segments where no limit is set."""
EMBEDDER_BYTES = 2 * GIB
"""Allowance for an embedder's weights and batches: MiniLM takes far less, a large one about this."""
CONTEXT_BYTES = 512 * 2**20
"""Allowance for what CUDA and its libraries take in each process."""
BASES_AT_ONCE = 2
"""Base segments of a shard's copy on the device while one replaces the other."""
MIN_MODEL_SHARE = 0.1
GPU_TIMEOUT_S = 60.0
"""How long another node's GPU may take to say how large it is."""


@dataclass(frozen=True, slots=True)
class GpuSplit:
    """One device divided."""

    total_bytes: int
    """Memory of the device."""
    base_bytes: int
    """Most that one base segment may take; 0 where none lives there."""
    num_bases: int
    """Base segments there at once: of all copies of all shards, while each is replaced."""
    other_bytes: int
    """For the embedder and CUDA itself."""
    model_share: float | None
    """vLLM's part of the device, 0 to 1; None where the model runs elsewhere."""

    @property
    def used_bytes(self) -> int:
        """Return what all may take together."""
        return (
            self.base_bytes * self.num_bases
            + self.other_bytes
            + math.ceil((self.model_share or 0.0) * self.total_bytes)
        )

    def applied(self, config: GraftConfig) -> GraftConfig:
        """Return the configuration with each part's share written into it."""
        retrieval, serving = config.retrieval, config.serving
        if self.base_bytes:
            retrieval = replace(retrieval, gpu_memory_limit_bytes=self.base_bytes)
        if self.model_share is not None:
            serving = replace(serving, gpu_memory_utilization=self.model_share)
        return replace(config, retrieval=retrieval, serving=serving)

    def __str__(self) -> str:
        model = "no model" if self.model_share is None else f"model {self.model_share:.0%}"
        index = f"index {self.num_bases} x {self.base_bytes / GIB:.1f}" if self.base_bytes else "no index"
        other = f"embedder and CUDA {self.other_bytes / GIB:.1f}"
        return f"{self.total_bytes / GIB:.1f} GiB: {model}, {index} GiB, {other} GiB"


def split_of(config: GraftConfig, total_bytes: int, num_shards: int = 1) -> GpuSplit:
    """Return how a device is divided; what the configuration sets is kept.

    Args:
        config: The limits set, and which parts use a GPU.
        total_bytes: Memory of the device.
        num_shards: Shards the index has.

    Raises:
        ConfigError: What is set does not fit the device together.
    """
    retrieval, serving = config.retrieval, config.serving
    has_model, has_index = serving.device != "cpu", retrieval.vector_device != "cpu"
    num_copies = num_shards * (1 + retrieval.num_replicas)
    num_bases = BASES_AT_ONCE * num_copies if has_index else 0
    other_bytes = CONTEXT_BYTES * (has_model + num_copies * has_index)
    if retrieval.embed_device != "cpu":
        other_bytes += retrieval.num_embedders * (EMBEDDER_BYTES + CONTEXT_BYTES)
    base_bytes = 0
    if has_index:
        base_bytes = retrieval.gpu_memory_limit_bytes or int(RETRIEVAL_SHARE * total_bytes) // num_bases
    left = 1 - (base_bytes * num_bases + other_bytes) / total_bytes
    share = serving.gpu_memory_utilization if has_model else None
    if has_model and share is None:
        share = max(0.0, math.floor(left * 100) / 100)
        # Of a whole device vLLM leaves this much free for its own peaks.
        share = min(share, 0.92)
    split = GpuSplit(total_bytes, base_bytes, num_bases, other_bytes, share)
    if split.used_bytes > total_bytes or (share is not None and share < MIN_MODEL_SHARE):
        raise ConfigError(
            f"the GPU of {total_bytes / GIB:.1f} GiB cannot hold the model, {num_bases} base segments of "
            f"{base_bytes / GIB:.1f} GiB and {other_bytes / GIB:.1f} GiB for the embedder and CUDA: lower "
            "retrieval.gpu_memory_limit_bytes or serving.gpu_memory_utilization, or set "
            "retrieval.vector_device or retrieval.embed_device to 'cpu'"
        )
    return split


def shards_of(config: GraftConfig) -> int:
    """Return the shards of the index in the home folder, or of a new one."""
    from retrieval.sharding.placement import read_placement

    stored = read_placement(config.home / "index")
    return stored.num_shards if stored else config.retrieval.num_shards or 1


def split_of_cluster(config: GraftConfig) -> GpuSplit | None:
    """Return how the GPU of the Ray cluster at hand is divided; None where it has none.

    Raises:
        ConfigError: What is set does not fit the device together.
        StartError: The GPU does not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    from retrieval.vectors import NoSuchDevice, cuda_driver

    if not num_gpus():
        return None
    try:
        total_bytes = cuda_driver.total_bytes("cuda")
    except NoSuchDevice:  # The GPU is on another node.
        ask = ray.remote(cuda_driver.total_bytes).options(num_cpus=0, num_gpus=0.01)
        try:
            total_bytes = ray.get(ask.remote("cuda"), timeout=GPU_TIMEOUT_S)
        except (GetTimeoutError, NoSuchDevice) as error:
            raise StartError(f"the cluster's GPU does not say how large it is: {error}") from error
    return split_of(config, total_bytes, shards_of(config))


def num_gpus() -> float:
    """Return 1 where the Ray cluster has a GPU for the language model, else 0."""
    import ray

    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
