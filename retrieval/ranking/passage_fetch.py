"""The passages of a search's hits: fetched in rounds, so that a chunk deleted meanwhile leaves no hole."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from retrieval.config import RetrievalConfig
from retrieval.ranking.budget import OUT_OF_TIME
from retrieval.ranking.candidate_list import CandidateList
from retrieval.ranking.expansion import NO_REACH, Reach, is_covered, reach_of
from retrieval.ranking.scatter import OPTIONAL_SHARE, Scatter
from retrieval.ranking.view import IndexView
from retrieval.types import Passage, Stage

Group = tuple[str, Reach]
"""Tenant and reach: what one call of a shard can answer together."""


class _Chosen:
    """The hits of one list as far as their passages are known."""

    def __init__(self, ranked: CandidateList, reach: Reach) -> None:
        self.ranked = ranked
        self.group: Group = (ranked.request.tenant, reach)
        self.passages: dict[str, Passage] = {}
        self._reach = reach
        self._next = 0

    def next_round(self, lost: Mapping[str, object]) -> list[str]:
        """Return the next best chunks, as many as hits are missing; empty when done."""
        batch: list[str] = []
        order, wanted = self.ranked.order, self.ranked.request.k - len(self.passages)
        while len(batch) < wanted and self._next < len(order):
            chunk_id = order[self._next]
            self._next += 1
            if self.ranked.shard_of[chunk_id] in lost:
                continue
            # A chunk that covers this one and is gone by now was of the same content: this one is gone, too.
            if not is_covered(chunk_id, [*self.passages, *batch], self._reach):
                batch.append(chunk_id)
        return batch


class PassageFetch:
    """Fetches the passages of one batch of searches."""

    def __init__(self, view: IndexView, scatter: Scatter, config: RetrievalConfig) -> None:
        """Prepare."""
        self._view = view
        self._scatter = scatter
        self._config = config

    async def fetch(self, lists: Sequence[CandidateList]) -> list[dict[str, Passage]]:
        """Return, for each list, the passages of its best `k` chunks by chunk id, best first.

        Raises:
            RetrievalUnavailable: No shard is left to answer.
        """
        started = time.perf_counter()
        in_time = self._scatter.remaining_s(OPTIONAL_SHARE) > 0
        chosen = [
            _Chosen(ranked, reach_of(ranked.request.expand, self._config) if in_time else NO_REACH)
            for ranked in lists
        ]
        while True:
            rounds = [one.next_round(self._scatter.lost) for one in chosen]
            if not any(rounds):
                break
            known = await self._ask(chosen, rounds)
            for one, batch in zip(chosen, rounds, strict=True):
                found = known[one.group] if batch else {}
                one.passages.update({chunk_id: found[chunk_id] for chunk_id in batch if chunk_id in found})
        ms = (time.perf_counter() - started) * 1000
        for ranked in lists:
            if ranked.request.expand != "none":
                ranked.stages.append(Stage("expand", ms) if in_time else Stage("expand", 0.0, OUT_OF_TIME))
            ranked.stages.append(Stage("passages", ms))
        return [one.passages for one in chosen]

    async def _ask(
        self, chosen: Sequence[_Chosen], rounds: Sequence[list[str]]
    ) -> dict[Group, dict[str, Passage]]:
        wanted: dict[Group, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        for one, batch in zip(chosen, rounds, strict=True):
            for chunk_id in batch:
                wanted[one.group][one.ranked.shard_of[chunk_id]][chunk_id] = None
        known: dict[Group, dict[str, Passage]] = {}
        for (tenant, reach), by_shard in wanted.items():
            answers = await self._scatter.ask(
                lambda shard, by_shard=by_shard, tenant=tenant, reach=reach: shard.passages(
                    self._view.version, list(by_shard[shard.name]), tenant, reach.before, reach.after
                ),
                names=by_shard,
            )
            known[tenant, reach] = {
                chunk_id: passage for answer in answers.values() for chunk_id, passage in answer.items()
            }
        return known
