"""The release that answers now: made of what runs, and made anew when the index switches versions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import GraftError
from graft.releases import Release, ReleaseLedger
from retrieval.errors import RetrievalError

if TYPE_CHECKING:
    from retrieval.sharding.router import Router
    from serving.types import GeneratorInfo

_log = logging.getLogger(__name__)

FOLLOW_S = 1.0
"""How often the epoch is looked up: a version that the configuration asks for is switched to by itself."""


@dataclass(frozen=True, slots=True)
class Unswitched:
    """What a release has beside the index version."""

    model_hash: str
    """Hash of the generator's weights."""
    tokenizer_hash: str
    """Hash of the generator's tokenizer."""
    prompt_hash: str
    """Hash of the prompt templates."""
    config_hash: str
    """Hash of the resolved configuration."""


def unswitched(model: GeneratorInfo, config_hash: str) -> Unswitched:
    """Return what a platform's release has beside the index version."""
    from serving.prompt import prompt_hash

    return Unswitched(model.model_hash, model.tokenizer_hash, prompt_hash(), config_hash)


class CurrentRelease:
    """Keeps the release pointer at what answers; belongs to one event loop."""

    def __init__(
        self, folder: Path, retrieval: Router, parts: Unswitched, on_release: Callable[[Release], None]
    ) -> None:
        """Prepare; `refresh` makes the first release, `follow` goes on.

        Args:
            folder: Holds the releases.
            retrieval: The index, whose epoch is followed.
            parts: What does not switch while the platform runs.
            on_release: Called with the release of each version that begins to answer.
        """
        self._ledger = ReleaseLedger(folder)
        self._retrieval = retrieval
        self._parts = parts
        self._on_release = on_release
        self._epoch: int | None = None
        self._changing = asyncio.Lock()

    async def refresh(self) -> None:
        """Make the release of the version that answers now current; nothing happens while it is.

        Raises:
            ReleaseConflict: Another process moved the pointer meanwhile; ask again.
            RetrievalError: The index does not answer.
        """
        async with self._changing:
            epoch = await self._retrieval.epoch()
            if epoch.epoch == self._epoch:
                return
            spec = next(
                info.spec for info in await self._retrieval.versions() if info.version_id == epoch.version
            )
            release = Release(
                embedder_hash=spec.model_hash,
                index_version=epoch.version,
                model_hash=self._parts.model_hash,
                tokenizer_hash=self._parts.tokenizer_hash,
                prompt_hash=self._parts.prompt_hash,
                config_hash=self._parts.config_hash,
            )
            await asyncio.to_thread(self._make_current, release)
            self._on_release(release)
            self._epoch = epoch.epoch

    async def catch_up(self) -> None:
        """Refresh; what does not work now is logged, and tried again by `follow`."""
        try:
            await self.refresh()
        except (GraftError, RetrievalError, OSError) as error:
            _log.warning("the release does not follow the index yet: %s", error)

    async def follow(self) -> None:
        """Refresh for ever, for switches that nobody tells of."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            await self.catch_up()

    def _make_current(self, release: Release) -> None:
        self._ledger.add(release)
        if (current := self._ledger.current()) != release.id:
            self._ledger.swap(current, release.id)
