"""A job on a Ray cluster: ranks by Ray Train, the index in actors that outlive a restart of the ranks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from training.checkpoints.peer_memory import Peers
from training.checkpoints.ray_holders import RayHolder, start_ray_holders
from training.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    JobError,
    NumericsError,
    OutOfResources,
    StalenessViolated,
)
from training.index import ActorResources, RayEncoderPool, RayShard, start_ray_shards, versions_folder
from training.jobs.job_config import JobConfig
from training.jobs.job_data import JobSets, read_sets
from training.jobs.job_folder import JobFolder
from training.jobs.kinds import KindRun, index_maker, run_kind
from training.jobs.memory_check import check_memory
from training.jobs.rank_end import KindOutcome, RankEnd
from training.jobs.stop_signals import stop_on_signals
from training.joint.config import JointConfig
from training.joint.parallel import COLLECTIVE_TIMEOUT_S, Ranks
from training.joint.run import BLOCK_ROWS, IndexParts, corpus_texts, index_folder, load_encoder
from training.joint.trainer import Watch

_log = logging.getLogger(__name__)

_FINAL = (ConfigError, DataError, NumericsError, OutOfResources, StalenessViolated, CheckpointError)
"""Errors that a restart would only repeat."""
TELL_EVERY_S = 5.0
"""Seconds between two reports to Ray Train, and between two looks for a node that is taken away."""
_START_FAILURES = 3
"""Times that workers may not be placed in time before the job gives up."""


@contextmanager
def connected() -> Iterator[None]:
    """Use the Ray that this process has, the one `RAY_ADDRESS` names, or a local one for the block.

    Raises:
        JobError: The address cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray cluster could be joined or started: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def ray_train_ranks() -> Iterator[Ranks]:
    """Yield a Ray Train worker's place; its process group is Ray Train's, also where it is alone."""
    context = ray.train.get_context()
    device = cast(torch.device, get_device())
    yield Ranks(context.get_world_rank(), context.get_world_size(), device)


def run_on_ray(config: JobConfig, sets: JobSets) -> KindOutcome:
    """Run a job by Ray Train workers, from its newest checkpoint, through failures and preemptions.

    Args:
        config: With absolute paths, which every node reaches.
        sets: What the driver read; ranks read the same files themselves.

    Raises:
        JobError: Workers failed more often than `ranks.max_failures`.
        OutOfResources: The cluster does not have what was asked.
        TrainingError: What a rank raised.
    """
    with connected():
        there = ray.cluster_resources()
        check_cluster(config, there)
        check_memory(config, sets, there)
        shards, holders = _start_shards(config, sets), _start_holders(config)
        try:
            with stop_on_signals(JobFolder(config.out).stop_file):
                while True:
                    end = _fit(config, shards, holders)
                    if end.error is not None:
                        raise end.error
                    if end.outcome is None or not end.is_preempted:
                        break
                    _log.warning("a node is taken away after step %d: starting elsewhere", end.outcome.steps)
        finally:
            for actor in (*shards, *holders):
                actor.close()
    if end.outcome is None:
        raise JobError(f"the workers of job {config.name!r} ended without a result; see the logs of Ray")
    return end.outcome


def check_cluster(config: JobConfig, there: Mapping[str, float]) -> None:
    """Refuse a job that the cluster cannot hold.

    Args:
        config: The job.
        there: What the cluster has in all, as `ray.cluster_resources`.

    Raises:
        OutOfResources: Naming each resource, how much is there and how much is missing.
    """
    lacking = [
        f"{name}: {amount:g} asked, {there.get(name, 0.0):g} there, {amount - there.get(name, 0.0):g} missing"
        for name, amount in cluster_needs(config).items()
        if amount > there.get(name, 0.0) + 1e-9
    ]
    if lacking:
        raise OutOfResources(
            f"the Ray cluster cannot hold job {config.name!r} ({'; '.join(lacking)}); start more nodes, or "
            "lower ranks.num_workers, index.num_shards and index.num_encoders"
        )


def cluster_needs(config: JobConfig) -> dict[str, float]:
    """Return what a job's ranks and actors reserve at once, by Ray's resource names."""
    ranks, index = config.ranks, config.index
    parts: list[tuple[int, Mapping[str, float]]] = [(ranks.num_workers, _worker_resources(config))]
    if config.kind == "joint":
        parts += [
            (index.num_shards, {"CPU": index.shard_cpus, "GPU": index.shard_gpus, **index.resources}),
            (index.num_encoders, {"CPU": index.encoder_cpus, "GPU": index.encoder_gpus, **index.resources}),
        ]
    needs: dict[str, float] = {}
    for count, resources in parts:
        for name, amount in resources.items():
            needs[name] = needs.get(name, 0.0) + count * amount
    return {name: amount for name, amount in needs.items() if amount > 0}


def _worker_resources(config: JobConfig) -> dict[str, float]:
    ranks = config.ranks
    gpus = {"GPU": ranks.gpus} if ranks.gpus else {}
    return {"CPU": float(ranks.cpus), **gpus, **ranks.resources}


def _start_shards(config: JobConfig, sets: JobSets) -> list[RayShard]:
    """Start the shards before the ranks: handles travel through the train configuration, never by name."""
    if config.kind != "joint":
        return []
    index = config.index
    return start_ray_shards(
        versions_folder(index_folder(config.out)),
        len(sets.train.passages),
        BLOCK_ROWS,
        index.num_shards,
        ActorResources(index.shard_cpus, index.shard_gpus, tuple(index.resources.items())),
        device="cuda" if index.shard_gpus else "cpu",
        num_searches=config.ranks.num_workers,
    )


def _start_holders(config: JobConfig) -> list[RayHolder]:
    """Start the holders of copies before the ranks, so that they outlive them."""
    if config.kind != "joint" or not config.tables["joint"].checkpoint.memory_every_steps:
        return []
    return start_ray_holders()


def _fit(config: JobConfig, shards: list[RayShard], holders: list[RayHolder]) -> RankEnd:
    ranks = config.ranks
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"config": config, "shards": shards, "holders": holders, "cwd": os.getcwd()},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if ranks.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=ranks.num_workers,
            use_gpu=ranks.gpus > 0,
            resources_per_worker=_worker_resources(config),
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=str(config.out / "ray"),
            failure_config=FailureConfig(
                max_failures=ranks.max_failures, controller_failure_limit=_START_FAILURES
            ),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.ControllerError as error:
        raise OutOfResources(
            f"the workers of job {config.name!r} could not be placed: {error.controller_failure}. Others may "
            "hold the cluster's resources; resume the job when they are free"
        ) from error
    except ray.train.TrainingFailedError as error:
        raise JobError(
            f"workers of job {config.name!r} failed more than ranks.max_failures={ranks.max_failures} times; "
            f"resume it from the newest checkpoint once the cause is gone. {_last_failure(error)}"
        ) from error
    return result.return_value if isinstance(result.return_value, RankEnd) else RankEnd(None)


def _last_failure(error: ray.train.TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", {})
    told = [f"rank {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures.items()]
    return "; ".join(told) or str(error)


def train_rank(arguments: dict[str, Any]) -> RankEnd:
    """Do a job's work on one rank of Ray Train; every rank reports after every step."""
    config, shards = cast(JobConfig, arguments["config"]), cast("list[RayShard]", arguments["shards"])
    if Path(arguments["cwd"]).is_dir():  # Ray Train moves workers; models may be named relative to the job.
        os.chdir(arguments["cwd"])
    pool = None
    with ray_train_ranks() as ranks:
        told = _RankWatch(JobFolder(config.out).stop_file, ranks)
        try:
            sets = read_sets(config.data, index_maker(config, ranks.device))
            if config.kind == "joint" and ranks.is_first:
                pool = _encoder_pool(config, sets)
            index = IndexParts(tuple(shards), pool) if config.kind == "joint" else None
            holders = cast("list[RayHolder]", arguments["holders"])
            peers = Peers(tuple(holders), ray.get_runtime_context().get_node_id()) if holders else None
            watch = Watch(told.on_step, told.should_stop)
            outcome = run_kind(config, KindRun(sets, ranks, watch, index, peers))
        except _FINAL as error:
            return RankEnd(None, error)
        finally:
            if pool is not None:
                pool.close()
    return RankEnd(outcome, is_preempted=told.is_preempted and not outcome.is_complete)


def _encoder_pool(config: JobConfig, sets: JobSets) -> RayEncoderPool:
    """Start the encoders on the rank that drives them: they end with it, and the next one makes its own."""
    index = config.index
    return RayEncoderPool(
        corpus_texts(sets.train),
        load_encoder(cast(JointConfig, config.tables["joint"]), "cuda" if index.encoder_gpus else "cpu"),
        BLOCK_ROWS,
        index.num_encoders,
        ActorResources(index.encoder_cpus, index.encoder_gpus, tuple(index.resources.items())),
    )


class _RankWatch:
    """Ray Train's collectives, called after the same steps on every rank: none is ever left waiting.

    They are called every `TELL_EVERY_S`, when the first rank says so: a report waits until the controller has
    fetched the one before, which it does every 2 s (Ray 2.60), so one a step would be a step every 2 s.
    """

    def __init__(self, stop_file: Path, ranks: Ranks) -> None:
        self._stop_file, self._ranks = stop_file, ranks
        self._told_at = time.monotonic()
        self._is_due = False
        self.is_preempted = False

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        self._is_due = bool(self._ranks.from_first(now - self._told_at >= TELL_EVERY_S))
        if self._is_due:
            self._told_at = now
            ray.train.report({"step": step, "loss": metrics.get("loss")})

    def should_stop(self) -> bool:
        if self._is_due:
            self.is_preempted = ray.train.get_preemption_info() is not None
        return self.is_preempted or self._stop_file.exists()
