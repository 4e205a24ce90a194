"""What a joint job will take on this machine, from a measurement of a few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import psutil
import torch

from training.calibration import calibrate
from training.errors import ConfigError
from training.estimate import Hardware, JointEstimator
from training.jobs.job_config import load_job
from training.jobs.job_data import read_sets
from training.jobs.kinds import index_maker
from training.jobs.memory_check import workload_of
from training.joint.config import JointConfig
from training.memory_estimate import GIB


def estimate_here(config: Path, overrides: Sequence[str]) -> str:
    """Return the estimate of a job for people; nothing is started or written.

    Args:
        config: TOML file of a joint job.
        overrides: What is set besides it.

    Raises:
        ConfigError: It is no joint job, or cannot be run.
        OutOfResources: It does not fit.
    """
    job = load_job(config, overrides)
    if job.kind != "joint":
        raise ConfigError(f"{config}: only joint jobs are estimated, this one is of kind {job.kind!r}")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    joint = cast(JointConfig, job.tables["joint"])
    sets = read_sets(job.data, index_maker(job, device))
    calibration = calibrate(joint, device)
    memory = (
        torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    )
    hardware = Hardware(
        device="cuda" if on_gpu else "cpu",
        per_node=torch.cuda.device_count() if on_gpu else 1,
        memory_gib=memory / GIB,
    )
    found = JointEstimator(joint, workload_of(joint, sets.train)).plan(calibration, hardware)
    return f"measured on {calibration.device}\n{found.told(joint)}"
