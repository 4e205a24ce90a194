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
    from graft.config import GraftConfig, load_config
    from graft.errors import AccessDenied, ConfigError, GraftError, NotRunning, RemoteError, StartError
    from graft.pipelines import AsyncPipeline, Pipeline
    from graft.sdk import AsyncGraft, Graft
    from retrieval.types import Document, DocumentState, Hit, Library, Passage, SearchResult

_HOME = {
    "AccessDenied": "graft.errors",
    "AsyncGraft": "graft.sdk",
    "AsyncPipeline": "graft.pipelines",
    "Budget": "agents.budget",
    "ChatTurn": "agents.state",
    "Citation": "agents.state",
    "ConfigError": "graft.errors",
    "Document": "retrieval.types",
    "DocumentState": "retrieval.types",
    "Graft": "graft.sdk",
    "GraftConfig": "graft.config",
    "GraftError": "graft.errors",
    "Hit": "retrieval.types",
    "Library": "retrieval.types",
    "NotRunning": "graft.errors",
    "Passage": "retrieval.types",
    "Pipeline": "graft.pipelines",
    "PlatformStatus": "graft.backend",
    "RemoteError": "graft.errors",
    "RunEvent": "agents.events",
    "RunResult": "agents.state",
    "SearchResult": "retrieval.types",
    "StartError": "graft.errors",
    "ThreadInfo": "agents.state",
    "load_config": "graft.config",
}
"""Where each public name lives."""

__all__ = [
    "AccessDenied",
    "AsyncGraft",
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
    "Hit",
    "Library",
    "NotRunning",
    "Passage",
    "Pipeline",
    "PlatformStatus",
    "RemoteError",
    "RunEvent",
    "RunResult",
    "SearchResult",
    "StartError",
    "ThreadInfo",
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
