"""A retriever that goes on asking one index version, so that a run's passages are of its release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retrieval.errors import UnknownVersion
from retrieval.types import DEFAULT_TENANT, Passage, Retriever, SearchRequest, SearchResult


class PinnedRetriever:
    """A `Retriever` whose searches ask one version where they name none."""

    def __init__(self, retriever: Retriever, version: str) -> None:
        """Pin.

        Args:
            retriever: The index.
            version: Id of the version.
        """
        self._retriever = retriever
        self._version = version

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`."""
        pinned = [
            request if request.version is not None else replace(request, version=self._version)
            for request in requests
        ]
        try:
            return await self._retriever.search(pinned)
        except UnknownVersion:
            # Dropped while the run was under way: an answer from the next version is better than none.
            return await self._retriever.search(requests)

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; see `Retriever.passages`."""
        return await self._retriever.passages(chunk_ids, tenant=tenant)
