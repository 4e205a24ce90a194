"""Whether a job fits the memory there is, asked before it starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import psutil

from training.errors import ConfigError
from training.jobs.job_config import JobConfig
from training.jobs.job_data import JobSets
from training.joint.config import JointConfig
from training.memory_estimate import GIB, estimate_memory
from training.run_shape import RunShape
from training.types import TrainingSet
from training.workload import Workload, measured_workload

_log = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")


def workload_of(config: JointConfig, train: TrainingSet) -> Workload:
    """Return what a training set asks of memory and time; raises ConfigError for a missing model."""
    try:
        return measured_workload(config, train)
    except FileNotFoundError as error:
        raise ConfigError(f"a model of the run cannot be found: {error}") from error


def check_memory(config: JobConfig, sets: JobSets, cluster: Mapping[str, float] | None = None) -> None:
    """Refuse a joint job that by its estimate will not fit; other kinds hold one model, and pass.

    Args:
        config: The job.
        sets: What it learns from.
        cluster: What a Ray cluster has in all; None where the job runs in this process.

    Raises:
        OutOfResources: Naming how much is missing.
        ConfigError: A model cannot be found.
    """
    if config.kind != "joint":
        return
    ranks = config.ranks
    num_ranks = ranks.num_workers or int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = ranks.gpus > 0 if ranks.num_workers else _num_gpus() > 0
    joint = cast(JointConfig, config.tables["joint"])
    estimate = estimate_memory(
        RunShape(joint, workload_of(joint, sets.train)),
        num_ranks,
        ranks.sharding,
        device="cuda" if on_gpu else "cpu",
        holds_index=ranks.num_workers == 0,
    )
    _log.info("a rank is estimated to take %.2f GiB", estimate.total / GIB)
    if ranks.memory_gib:
        estimate.check(ranks.memory_gib * GIB, "ranks.memory_gib")
    elif cluster is None:
        available, where = _here(on_gpu)
        estimate.check(available, where)
    elif not on_gpu:
        estimate.check(cluster.get("memory", 0.0) / num_ranks, f"the cluster shared by {num_ranks} ranks")
    else:
        _log.warning(
            "how much memory the cluster's GPUs have is not known here; set ranks.memory_gib to check"
        )


def _here(on_gpu: bool) -> tuple[float, str]:
    if on_gpu:
        import torch

        free, _ = torch.cuda.mem_get_info()
        return float(free), "this GPU"
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free_bytes = min([psutil.virtual_memory().available, *_container_bytes()])
    return free_bytes / on_machine, "this machine" + (f" shared by {on_machine}" if on_machine > 1 else "")


def _container_bytes() -> list[int]:
    """Return what a container's limit leaves, where there is one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [int(limit) - used]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
