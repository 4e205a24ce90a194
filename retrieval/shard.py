"""One shard: SQLite as truth, FAISS as a cache of it that follows the change log.

Every search runs in one SQLite snapshot and first brings the vector index to that snapshot's log position, so
both legs, the passages and `SearchResult.seq` show the same moment: nothing half-written, nothing deleted.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval import media_types
from retrieval.config import RetrievalConfig
from retrieval.ranking.fusion import convex_combination
from retrieval.index import VectorIndex
from retrieval.lexical import match_expression
from retrieval.requests import check_document, check_searches
from retrieval.snapshot import ChunkFilter, Snapshot
from retrieval.store import Store
from retrieval.types import Document, EmbedderInfo, Hit, SearchRequest, SearchResult


def index_version_of(embedder: EmbedderInfo, config: RetrievalConfig) -> str:
    """Return the name of the index that this embedder and this chunking make."""
    return f"{embedder.model_hash}-{config.chunking_id}"


class IndexShard:
    """Documents of one shard, searchable. All methods block and may be called from any thread."""

    def __init__(self, folder: Path, config: RetrievalConfig, index_version: str) -> None:
        """Open or create the shard in `folder`.

        Args:
            folder: Holds `shard.sqlite3`; created if missing.
            config: Limits and search settings.
            index_version: From `index_version_of`. When the folder was made with another one, its documents
                are queued again and embedded anew from their stored bytes.

        Raises:
            IndexUnavailable: Another process has it open, or the file is damaged or not ours.
            StorageFull: The disk has no room for it.
        """
        self.config = config
        self.index_version = index_version
        self.store = Store(folder, index_version)
        self._index = VectorIndex(config.gather_max_rows)
        with self.store.snapshot() as snapshot:
            self._follow(snapshot)

    def close(self) -> None:
        """Close the store; the vector index is only a cache."""
        self.store.close()

    def add(self, name: str, data: bytes, library: str, tenant: str) -> Document:
        """Check a file, store it durably and queue it; see `DocumentStore.add`."""
        check_document(name, data, library, tenant, self.config)
        return self.store.add(tenant, library, name, media_types.sniff(name, data), data)

    def search(
        self, requests: Sequence[SearchRequest], vectors_QD: np.ndarray, *, embed_ms: float = 0.0
    ) -> list[SearchResult]:
        """Return one result per request, all of the same moment.

        Args:
            requests: The queries.
            vectors_QD: float32[len(requests), dim], L2-normalised embeddings of the queries.
            embed_ms: Time spent making them, passed on into the results.

        Raises:
            InvalidSearch: A request is out of its bounds.
        """
        check_searches(requests, self.config)
        started = time.perf_counter()
        with self.store.snapshot() as snapshot:
            self._follow(snapshot)
            dense = self._dense(requests, vectors_QD)
            hits = [
                self._hits(request, dense_scores, self._lexical(snapshot, request))
                for request, dense_scores in zip(requests, dense, strict=True)
            ]
            passages = snapshot.passages_by_row({row_id for found in hits for row_id, _ in found})
            seq = self._index.seq
        search_ms = (time.perf_counter() - started) * 1000
        return [
            SearchResult(
                hits=tuple(hit for _, hit in found),
                passages=tuple(passages[row_id] for row_id, _ in found),
                index_version=self.index_version,
                seq=seq,
                embed_ms=embed_ms,
                search_ms=search_ms,
            )
            for found in hits
        ]

    def _follow(self, snapshot: Snapshot) -> None:
        """Bring the vector index to the snapshot's log position."""
        seq = snapshot.seq()
        if seq == self._index.seq:
            return
        changed = snapshot.changed_documents(self._index.seq)
        for document_id in changed:
            self._index.remove(document_id)
        self._index.put(snapshot.vectors(changed))
        self._index.seq = seq

    def _dense(self, requests: Sequence[SearchRequest], vectors_QD: np.ndarray) -> list[dict[int, float]]:
        """Return the dense leg of each request; requests that share a filter share one index call."""
        groups: dict[ChunkFilter, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            if request.mode != "lexical":
                groups[_filter_of(request)].append(position)
        found: list[dict[int, float]] = [{} for _ in requests]
        for chunks, positions in groups.items():
            k = max(self._num_candidates(requests[position]) for position in positions)
            scores = self._index.search(np.asarray(vectors_QD)[positions], k, chunks)
            for position, by_row in zip(positions, scores, strict=True):
                limit = self._num_candidates(requests[position])
                found[position] = dict(list(by_row.items())[:limit])
        return found

    def _lexical(self, snapshot: Snapshot, request: SearchRequest) -> dict[int, float]:
        if request.mode == "dense":
            return {}
        match = match_expression(request.query, self.config.max_query_terms)
        if match is None:
            return {}
        chunks = _filter_of(request)
        # A filter that keeps everything costs a join for nothing.
        only = None if self._index.keeps_all(chunks) else chunks
        return snapshot.lexical(match, self._num_candidates(request), only)

    def _num_candidates(self, request: SearchRequest) -> int:
        return max(request.k, self.config.num_candidates)

    def _hits(
        self, request: SearchRequest, dense: dict[int, float], lexical: dict[int, float]
    ) -> list[tuple[int, Hit]]:
        """Return (row id, hit) of the best `k`, ties broken by chunk id."""
        if request.mode == "hybrid":
            scores = convex_combination(dense, lexical, self.config.alpha)
        else:
            scores = dense if request.mode == "dense" else lexical
        keyed = sorted((-score, self._index.chunk_id(row_id), row_id) for row_id, score in scores.items())
        return [
            (
                row_id,
                Hit(
                    chunk_id=chunk_id,
                    score=-negated,
                    rank=rank,
                    dense_score=dense.get(row_id),
                    lexical_score=lexical.get(row_id),
                ),
            )
            for rank, (negated, chunk_id, row_id) in enumerate(keyed[: request.k])
        ]


def _filter_of(request: SearchRequest) -> ChunkFilter:
    return ChunkFilter(request.tenant, request.library, tuple(sorted(set(request.document_ids))))
