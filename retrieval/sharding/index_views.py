"""Which version answers, with which embedder, over which shards; a search looks once, at its start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from retrieval.errors import IndexUnavailable, RetrievalError, UnknownVersion
from retrieval.ingestion.embedders import Embedders, MissingEmbedder
from retrieval.ranking.view import IndexView
from retrieval.sharding.epochs import Epoch
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.sharding.topology import CurrentTopology
from retrieval.sharding.version_switch import newest_epoch
from retrieval.truth.registry import NamedVersion
from retrieval.versions import VersionState

_log = logging.getLogger(__name__)

_REFRESH_S = 1.0
"""How old the knowledge of a router may be that did not make the switch itself."""


class IndexViews:
    """Follows the versions of an index; belongs to one event loop."""

    def __init__(self, topology: CurrentTopology, embedders: Embedders) -> None:
        """Start knowing nothing; `ensure` asks the shards.

        Args:
            topology: The shards.
            embedders: Those that are here; more are loaded as versions need them.
        """
        self._topology = topology
        self._embedders = embedders
        self._epoch: Epoch | None = None
        self._known: dict[str, NamedVersion] = {}
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    def view_of(self, name: str | None) -> IndexView:
        """Return what answers for a version or alias, None for the active one.

        Raises:
            UnknownVersion: There is none of this name, as far as is known.
            IndexUnavailable: The shards were not asked yet.
        """
        epoch = self._epoch
        if epoch is None:
            raise IndexUnavailable("the shards have not been asked for their versions; call `ready` first")
        wanted = epoch.version if name is None else name
        found = self._known.get(wanted) or next(
            (known for known in self._known.values() if wanted in known.aliases), None
        )
        if found is None:
            here = ", ".join(f"'{version_id}'" for version_id in self._known)
            raise UnknownVersion(f"no index version or alias '{wanted}'; there are {here}")
        version, spec = found.version, found.version.spec
        embedder = self._embedders.of(spec) or MissingEmbedder(spec)
        return IndexView(version.version_id, epoch.epoch, spec, embedder, self._topology.now.shards)

    def entered(self, epoch: Epoch) -> None:
        """Answer from a switch that was just committed."""
        if self._epoch is None or epoch.epoch > self._epoch.epoch:
            self._epoch = epoch

    async def ensure(self) -> None:
        """Know the versions; old knowledge is good enough to answer, and is renewed beside."""
        if self._epoch is None:
            await self.refresh()
        elif self._asking is None and asyncio.get_running_loop().time() - self._asked_at > _REFRESH_S:
            self._asking = asyncio.create_task(self._refresh_beside())

    async def refresh(self) -> None:
        """Ask the shards now.

        Raises:
            IndexUnavailable: None of them answers.
        """
        shards = self._topology.now.shards
        self.entered(await newest_epoch(shards))
        named = await _first_answer(shards)
        for known in named:
            if known.version.state in (VersionState.ACTIVE, VersionState.READY):
                await self._embedders.try_load(known.version.spec)
        self._known = {known.version.version_id: known for known in named}
        self._asked_at = asyncio.get_running_loop().time()

    async def aclose(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()

    async def _refresh_beside(self) -> None:
        try:
            await self.refresh()
        except RetrievalError as error:
            _log.warning("the index versions could not be looked up: %s", error)
        finally:
            self._asking = None


async def _first_answer(shards: Sequence[ReplicaSet]) -> list[NamedVersion]:
    """Return the versions of the first shard that tells them: all shards have the same."""
    for shard in shards[:-1]:
        try:
            return await shard.read("named_versions")
        except IndexUnavailable as error:
            _log.warning("%s does not tell its versions: %s", shard.name, error)
    return await shards[-1].read("named_versions")
