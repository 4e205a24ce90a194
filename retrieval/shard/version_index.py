"""One index version of one shard in memory: chunks, fields, vectors and terms at one log position.

It is a cache of a prefix of the shard's log: a base segment mapped from its folder, and everything after it
followed from the store. Every search brings it to the moment of its snapshot first, so both legs show that
moment. Not thread-safe: the shard's search lock guards it.

Legend: N positions, Q queries, K hits, D dimensions.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.admin import RecallEstimate as ReportedRecall
from retrieval.admin import SegmentReport
from retrieval.config import RetrievalConfig
from retrieval.lexical import query_terms
from retrieval.lexical.bm25 import Bm25
from retrieval.lexical.delta_postings import ReadTerms
from retrieval.lexical.lexical_base import LexicalBase
from retrieval.lexical.segments import LexicalSegments
from retrieval.reader import Candidates, TermStats
from retrieval.shard.base_segment import (
    LEXICAL_FOLDER,
    VECTORS_FOLDER,
    base_row_id,
    read_contents,
    read_matrix,
)
from retrieval.shard.contents import Contents
from retrieval.shard.segments_on_disk import Manifest
from retrieval.shard.selection import ChunkFilter, Selection, Selections
from retrieval.truth.snapshot import Snapshot
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import SearchRequest
from retrieval.vectors.exact import ExactBase
from retrieval.vectors.kinds import open_base
from retrieval.vectors.recall import AskedQueries, RecallEstimate, RecallEstimator, estimate_recall
from retrieval.vectors.segments import VectorSegments
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import IndexTooLarge, NoSuchDevice, VectorBase

_TIE_SLACK = 8
_MAX_TIES = 4096
"""Most chunks of one equal score looked through for the order of their ids."""
_NO_LEXICAL = "the lexical index is being rebuilt"

_SPARE_CANDIDATES = 10
"""Candidates beyond `k` of a search that ends with one leg: for ties, and for chunks deleted meanwhile."""

_TUNING_QUERIES = 128
"""Queries asked lately on which the next base is tuned; with fewer, rows stand in for queries."""

_log = logging.getLogger(__name__)


class VersionIndex:
    """Searches one version; `follow` brings it up to date."""

    def __init__(
        self, version: StoredVersion, config: RetrievalConfig, segment: tuple[Path, Manifest] | None = None
    ) -> None:
        """Open a base segment, or start empty; call `follow` before anything else.

        Args:
            version: The version.
            config: Search and compaction settings.
            segment: Folder and manifest of a base segment that was checked; None to start from the store.

        Raises:
            OSError: A file of the segment cannot be read.
            ValueError: The segment's parts do not belong together.
        """
        self.version = version
        self.segment = segment
        self.segment_lost = False
        """Whether there was a base segment that could not be used."""
        self.misplaced = False
        """Whether its vectors' structure needs a device or memory that this machine lacks."""
        self.lexical_complete = True
        """Whether the terms of every chunk can be looked up."""
        self._config = config
        settings = VectorSettings.of(config)
        bm25 = Bm25(config.bm25_k1, config.bm25_b)
        self._checked_terms = False
        if segment is None:
            self.contents = Contents()
            empty_ND = np.empty((0, version.dim), dtype=np.float32)
            self.vectors = VectorSegments(ExactBase(empty_ND, settings.num_threads), settings)
            self._lexical = LexicalSegments(bm25)
        else:
            folder, manifest = segment
            self.contents = read_contents(folder, manifest)
            self.vectors = VectorSegments(self._opened_base(folder, manifest, settings), settings)
            self._lexical = LexicalSegments(
                bm25, LexicalBase(folder / LEXICAL_FOLDER), base_row_id(self.contents)
            )
            if not len(self.contents.rows) == len(self.vectors) == self._lexical.num_rows:
                raise ValueError(f"the parts of segment '{folder}' have different numbers of chunks")
        self._recall = RecallEstimator(config.recall_floor, config.shadow_share)
        self._alarmed = False
        self._asked = AskedQueries()
        self._to_shadow: tuple[np.ndarray, ChunkFilter] | None = None
        self._num_base = len(self.contents.rows)
        self.base_row_id = base_row_id(self.contents)
        self._selections = Selections(self.contents.rows, self.contents.columns)

    def _opened_base(self, folder: Path, manifest: Manifest, settings: VectorSettings) -> VectorBase:
        """Return the segment's vectors; its bare matrix where their structure cannot be had here."""
        matrix_ND = read_matrix(folder, manifest)
        try:
            return open_base(folder / VECTORS_FOLDER, matrix_ND, settings)
        except (IndexTooLarge, NoSuchDevice) as error:
            self.misplaced = True
            _log.warning(
                "the vectors of index segment '%s' cannot be used on this machine: %s; searches are exact "
                "until they are built again",
                folder,
                error,
            )
            return ExactBase(matrix_ND, settings.num_threads)

    @property
    def seq(self) -> int:
        """Return the log position it shows."""
        return self.contents.seq

    def follow(self, snapshot: Snapshot) -> None:
        """Go to the snapshot's log position; nothing happens when it is there already."""
        changes = snapshot.changes(self.version.number, self.seq)
        rows, first = self.contents.rows, len(self.contents.rows)
        applied = self.contents.apply(changes)
        if applied.removed.size:
            self.vectors.remove(applied.removed)
            self._lexical.remove(applied.removed)
        if len(rows) > first:
            self.vectors.add(np.concatenate(applied.vectors))
            self._lexical.add(rows.row_ids_N[first:], rows.num_terms_N[first:])
        if not self._checked_terms:
            self._checked_terms = True
            # Pruned terms with no base segment that holds them: the base was lost. Later rows have theirs.
            self.lexical_complete = len(rows) == self._num_base or snapshot.has_terms(
                self.version.number, int(rows.row_ids_N[self._num_base])
            )

    def report(self, shard: str, num_compactions: int) -> SegmentReport:
        """Return what is held in memory, for the operator of a shard that built so many segments."""
        manifest, served = None if self.segment is None else self.segment[1], self._recall.estimate()
        reported = ReportedRecall(
            served.recall,
            served.low,
            served.high,
            served.num_queries,
            self._config.recall_floor,
            served.alarm,
        )
        return SegmentReport(
            shard=shard,
            version_id=self.version.version_id,
            kind=self.vectors.base.kind,
            seq=self.seq,
            num_rows=self.vectors.num_live,
            num_base_rows=self._num_base,
            num_delta_rows=self.vectors.num_delta,
            num_dead_rows=len(self.vectors) - self.vectors.num_live,
            resident_bytes=self.vectors.resident_bytes,
            built_recall=None if manifest is None else manifest.details.get("measured_recall"),
            num_compactions=num_compactions,
            served_recall=reported if served.num_queries else None,
        )

    def compaction_reason(self) -> str | None:
        """Return why a new base segment is due, or None."""
        if self.segment_lost or not self.lexical_complete:
            return "its base segment was lost"
        if self.misplaced:
            return "the vectors of its base segment cannot be used on this machine"
        reason = self.vectors.needs_compaction()
        served = self._recall.estimate()
        if reason is None and served.alarm and self.vectors.num_live != self._num_base:
            # A base of the very rows it has would be no better.
            return (
                f"recall is {served.recall:.3f} in {served.num_queries:,} searches looked at, below the floor"
            )
        limit = self._config.lexical_delta_max_rows
        if reason is None and self._lexical.num_delta_rows > limit:
            return f"{self._lexical.num_delta_rows:,} rows whose terms no segment holds, more than {limit:,}"
        return reason

    def term_stats(self, snapshot: Snapshot, terms: Sequence[str]) -> TermStats:
        """Return the statistics of all live chunks, whatever a filter keeps."""
        return self._lexical.stats(terms, self._delta_terms(snapshot))

    def candidates(
        self,
        snapshot: Snapshot,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None,
        give_up_at: float,
    ) -> list[Candidates]:
        """Return both legs' candidates of each request; see `ShardReader.candidates`.

        Args:
            snapshot: The moment this index was brought to.
            requests: The queries.
            vectors_QD: float32[Q, D], their embeddings.
            stats: The collection's statistics; None when this index is the collection.
            give_up_at: `time.monotonic()` after which a lexical leg is not begun any more.
        """
        filters = [ChunkFilter.of(request) for request in requests]
        selections = [self._selections.get(chunks) for chunks in filters]
        dense, plans, dense_ms = self._dense(requests, vectors_QD, filters, selections)
        found: list[Candidates] = []
        for position, request in enumerate(requests):
            started = time.perf_counter()
            lexical: list[tuple[str, float]] = []
            skipped: dict[str, str] = {}
            if request.mode != "dense":
                if not self.lexical_complete:
                    skipped["lexical"] = _NO_LEXICAL
                elif time.monotonic() > give_up_at:
                    skipped["lexical"] = "deadline"
                else:
                    lexical = self._lexical_leg(snapshot, request, selections[position], stats)
            unknown = sorted(self._selections.unknown_fields(filters[position]))
            found.append(
                Candidates(
                    dense=tuple(dense[position]),
                    lexical=tuple(lexical),
                    plan=plans[position],
                    seq=self.seq,
                    dense_ms=dense_ms,
                    lexical_ms=(time.perf_counter() - started) * 1000,
                    skipped=skipped,
                    unknown_fields=tuple(unknown),
                    known_fields=self.contents.columns.fields if unknown else {},
                )
            )
        return found

    def vectors_of(self, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return float32[D] by chunk id, of the live chunks among these."""
        positions = {chunk_id: self.contents.position_of(chunk_id) for chunk_id in chunk_ids}
        here = {chunk_id: position for chunk_id, position in positions.items() if position is not None}
        vectors_ND = self.vectors.exact_vectors(np.fromiter(here.values(), dtype=np.int64))
        return dict(zip(here, vectors_ND, strict=True))

    def recall_served(self) -> RecallEstimate:
        """Return the recall of the searches answered since the base segment was opened."""
        return self._recall.estimate()

    def estimate_recall(self, num_queries: int) -> RecallEstimate:
        """Return the recall of the last `num_queries` asked, or of live rows where fewer were."""
        asked_QD, floor = self._asked.last(num_queries), self._config.recall_floor
        return estimate_recall(self.vectors, num_queries, floor, queries_QD=asked_QD)

    def tuning_queries(self) -> np.ndarray | None:
        """Return float32[Q, D], queries asked lately to tune the next base on; None for too few."""
        return self._asked.last(_TUNING_QUERIES)

    def has_shadow(self) -> bool:
        """Return whether a search waits to be repeated exactly by `shadow`."""
        return self._to_shadow is not None

    def shadow(self) -> None:
        """Repeat a search of late exactly, to learn the recall it was answered with."""
        if self._to_shadow is None:
            return
        (query_QD, chunks), self._to_shadow = self._to_shadow, None
        selection = self._selections.get(chunks)
        _, found_QK, _ = self.vectors.search(query_QD, self._config.num_candidates, selection)
        self._recall.shadow(self.vectors, query_QD, found_QK, selection)
        served = self._recall.estimate()
        if served.alarm and not self._alarmed:
            _log.warning(
                "index version '%s' serves recall %.3f (%.3f to %.3f in %d searches repeated exactly), below "
                "recall_floor=%g; the next compaction tunes it anew",
                self.version.version_id,
                served.recall,
                served.low,
                served.high,
                served.num_queries,
                self._config.recall_floor,
            )
        self._alarmed = served.alarm

    def _dense(
        self,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        filters: Sequence[ChunkFilter],
        selections: Sequence[Selection],
    ) -> tuple[list[list[tuple[str, float]]], list[str], float]:
        """Return the dense leg of each request, its plan, and the time all took together."""
        started = time.perf_counter()
        groups: dict[tuple[ChunkFilter, bool], list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            if request.mode != "lexical":
                self._asked.add(vectors_QD[position : position + 1])
                groups[filters[position], request.exact].append(position)
        found: list[list[tuple[str, float]]] = [[] for _ in requests]
        plans = ["not asked for" for _ in requests]
        for (chunks, exact), members in groups.items():
            wanted = max(self._num_candidates(requests[position]) for position in members)
            scores_QK, positions_QK, plan = self._nearest(
                np.ascontiguousarray(vectors_QD[members], dtype=np.float32),
                wanted,
                selections[members[0]],
                exact,
            )
            if (
                plan.startswith(self.vectors.base.kind)
                and not plan.startswith("exact")
                and self._recall.wants()
            ):
                self._to_shadow = (vectors_QD[members[:1]], chunks)
            for row, position in enumerate(members):
                limit = self._num_candidates(requests[position])
                found[position] = self._ranked(scores_QK[row], positions_QK[row], limit)
                plans[position] = plan
        return found, plans, (time.perf_counter() - started) * 1000

    def _nearest(
        self, queries_QD: np.ndarray, wanted: int, selection: Selection, exact: bool
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Return at least the `wanted` nearest chunks, and all that tie with the last of them."""
        fetched = wanted + _TIE_SLACK
        while True:
            scores_QK, positions_QK, plan = self.vectors.search(queries_QD, fetched, selection, exact)
            tied = scores_QK.shape[1] == fetched and bool(
                (scores_QK[:, wanted - 1] == scores_QK[:, -1]).any()
            )
            if not tied or fetched >= wanted + _MAX_TIES:
                return scores_QK, positions_QK, plan
            fetched = min(wanted + _MAX_TIES, fetched * 4)

    def _ranked(self, scores_K: np.ndarray, positions_K: np.ndarray, limit: int) -> list[tuple[str, float]]:
        """Return chunk ids and scores of the best, ties by chunk id."""
        if len(scores_K) > limit:
            kept = scores_K >= scores_K[limit - 1]
            scores_K, positions_K = scores_K[kept], positions_K[kept]
        pairs = list(zip(self.contents.chunk_ids(positions_K), scores_K.tolist(), strict=True))
        if bool((scores_K[:-1] <= scores_K[1:]).any()):
            pairs.sort(key=lambda pair: (-pair[1], pair[0]))
        return pairs[:limit]

    def _lexical_leg(
        self, snapshot: Snapshot, request: SearchRequest, selection: Selection, stats: TermStats | None
    ) -> list[tuple[str, float]]:
        terms = query_terms(request.query, self._config.max_query_terms)
        if not terms or not selection.count:
            return []
        scores_K, positions_K = self._lexical.search(
            terms,
            self._num_candidates(request),
            self._delta_terms(snapshot),
            keep=selection.keep,
            stats=stats,
            tie_key=self.contents.chunk_ids,
        )
        return self._ranked(scores_K, positions_K, len(scores_K))

    def _delta_terms(self, snapshot: Snapshot) -> ReadTerms:
        return lambda after_row_id: snapshot.delta_terms(self.version.number, after_row_id)

    def _num_candidates(self, request: SearchRequest) -> int:
        """Return the candidates of a leg; few where no later stage could change their order."""
        reordered = request.rerank != "none" and not (
            request.rerank == "auto" and self.version.spec.tokens == "none"
        )
        if request.mode == "hybrid" or reordered or request.mmr is not None:
            return max(request.k, self._config.num_candidates)
        return request.k + _SPARE_CANDIDATES
