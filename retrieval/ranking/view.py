"""The index as one search sees it: one version, one set of shards and one embedder, from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.reader import ShardReader
from retrieval.types import Embedder
from retrieval.versions import VersionSpec


@dataclass(frozen=True, slots=True)
class IndexView:
    """What answers a search; a switch of versions or a reshard makes a new one, searches keep theirs."""

    version: str
    """Index version."""
    epoch: int
    """Switch of versions it belongs to."""
    spec: VersionSpec
    """What makes the version."""
    embedder: Embedder
    """The version's model."""
    shards: Sequence[ShardReader]
    """All shards, at least one."""
