"""The index that is searched while training; names are loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.index.encoder_pool import EncoderPool, InlineEncoderPool
    from training.index.encoder_supervisor import ThreadEncoderPool
    from training.index.encoding import LoadEncoder, PassageEncoder, ProbeEncoder
    from training.index.ray_clients import ActorResources, RayEncoderPool, RayShard, start_ray_shards
    from training.index.refresh_report import ProbeReport, RefreshCounters, RefresherState, RefreshReport
    from training.index.refresher import Refresher, versions_folder
    from training.index.schedule import PlannedVersion, RefreshConfig, RefreshPlan
    from training.index.sharded_search import ShardClient, ShardedSearch, local_shards, shard_rows
    from training.index.snapshot_weights import SaveWeights

_HOMES = {
    "ActorResources": "ray_clients",
    "EncoderPool": "encoder_pool",
    "InlineEncoderPool": "encoder_pool",
    "LoadEncoder": "encoding",
    "PassageEncoder": "encoding",
    "PlannedVersion": "schedule",
    "ProbeEncoder": "encoding",
    "ProbeReport": "refresh_report",
    "RayEncoderPool": "ray_clients",
    "RayShard": "ray_clients",
    "RefreshConfig": "schedule",
    "RefreshCounters": "refresh_report",
    "RefreshPlan": "schedule",
    "RefreshReport": "refresh_report",
    "Refresher": "refresher",
    "RefresherState": "refresh_report",
    "SaveWeights": "snapshot_weights",
    "ShardClient": "sharded_search",
    "ShardedSearch": "sharded_search",
    "ThreadEncoderPool": "encoder_supervisor",
    "local_shards": "sharded_search",
    "shard_rows": "sharded_search",
    "start_ray_shards": "ray_clients",
    "versions_folder": "refresher",
}
"""File of each public name."""

__all__ = [
    "ActorResources",
    "EncoderPool",
    "InlineEncoderPool",
    "LoadEncoder",
    "PassageEncoder",
    "PlannedVersion",
    "ProbeEncoder",
    "ProbeReport",
    "RayEncoderPool",
    "RayShard",
    "RefreshConfig",
    "RefreshCounters",
    "RefreshPlan",
    "RefreshReport",
    "Refresher",
    "RefresherState",
    "SaveWeights",
    "ShardClient",
    "ShardedSearch",
    "ThreadEncoderPool",
    "local_shards",
    "shard_rows",
    "start_ray_shards",
    "versions_folder",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training.index' has no attribute {name!r}")
    return getattr(import_module(f"training.index.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
