"""Graft: cited answers from your own documents, on hardware you hold.

Everything a program needs is here; the parts are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.budget import Budget
    from agents.events import RunEvent
    from agents.state import ChatTurn, Citation, RunResult, ThreadInfo
    from graft.backend import PlatformStatus
    from graft.blocking import Graft
    from graft.config import GraftConfig, load_config
    from graft.errors import AccessDenied, ConfigError, GraftError, NotRunning, RemoteError, StartError
    from graft.graph import AsyncGraph, Graph
    from graft.index import AsyncIndex, Index
    from graft.pipelines import AsyncPipeline, Pipeline
    from graft.sdk import AsyncGraft
    from retrieval.types import (
        Acknowledged,
        Document,
        DocumentState,
        Hit,
        Library,
        Passage,
        Record,
        SearchResult,
    )
    from retrieval.versions import VersionInfo, VersionState

_HOME = {
    "AccessDenied": "graft.errors",
    "Acknowledged": "retrieval.types",
    "AsyncGraft": "graft.sdk",
    "AsyncGraph": "graft.graph",
    "AsyncIndex": "graft.index",
    "AsyncPipeline": "graft.pipelines",
    "Budget": "agents.budget",
    "ChatTurn": "agents.state",
    "Citation": "agents.state",
    "ConfigError": "graft.errors",
    "Document": "retrieval.types",
    "DocumentState": "retrieval.types",
    "Graft": "graft.blocking",
    "GraftConfig": "graft.config",
    "GraftError": "graft.errors",
    "Graph": "graft.graph",
    "Hit": "retrieval.types",
    "Index": "graft.index",
    "Library": "retrieval.types",
    "NotRunning": "graft.errors",
    "Passage": "retrieval.types",
    "Pipeline": "graft.pipelines",
    "PlatformStatus": "graft.backend",
    "Record": "retrieval.types",
    "RemoteError": "graft.errors",
    "RunEvent": "agents.events",
    "RunResult": "agents.state",
    "SearchResult": "retrieval.types",
    "StartError": "graft.errors",
    "ThreadInfo": "agents.state",
    "VersionInfo": "retrieval.versions",
    "VersionState": "retrieval.versions",
    "load_config": "graft.config",
}
"""Where each public name lives."""

__all__ = [
    "AccessDenied",
    "Acknowledged",
    "AsyncGraft",
    "AsyncGraph",
    "AsyncIndex",
    "AsyncPipeline",
    "Budget",
    "ChatTurn",
    "Citation",
    "ConfigError",
    "Document",
    "DocumentState",
    "Graft",
    "GraftConfig",
    "GraftError",
    "Graph",
    "Hit",
    "Index",
    "Library",
    "NotRunning",
    "Passage",
    "Pipeline",
    "PlatformStatus",
    "Record",
    "RemoteError",
    "RunEvent",
    "RunResult",
    "SearchResult",
    "StartError",
    "ThreadInfo",
    "VersionInfo",
    "VersionState",
    "load_config",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOME:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
