"""A shard in memory, of NumPy and dictionaries; one contract suite runs over it and over the real one."""

from __future__ import annotations

import asyncio
import math
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from fakes_embedder import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.errors import UnknownVersion
from retrieval.filters import And, Compare, Exists, Filter, In, Not, Or
from retrieval.lexical.tokens import query_terms, terms_of
from retrieval.reader import Candidates, TermStats
from retrieval.types import Metadata, Passage, SearchRequest
from retrieval.versions import VersionSpec

K1, B = RetrievalConfig().bm25_k1, RetrievalConfig().bm25_b
SPEC = VersionSpec("hash", "hash000000000064", 64, 180, 20, 2000, tokens="int8")
_OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass
class Row:
    """A chunk."""

    passage: Passage
    document_text: str
    tenant: str
    metadata: Metadata
    vector_D: np.ndarray
    codes: bytes | None
    terms: Counter[str]


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Return where the paragraphs of a text begin and end."""
    return [match.span() for match in re.finditer(r"\S(?:.*?\S)?(?=\s*(?:\n\n|\Z))", text, re.S)]


class MemoryShard:
    """A `ShardReader` over paragraphs; `delay_s` and `error` make it slow or broken."""

    def __init__(self, name: str = "shard-0", spec: VersionSpec = SPEC) -> None:
        self._name = name
        self.spec = spec
        self.embedder = HashEmbedder(dim=spec.model_dim)
        self.rows: dict[str, Row] = {}
        self.seq = 0
        self.delay_s: dict[str, float] = {}
        self.error: dict[str, Exception] = {}
        self.calls: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._name

    async def put(
        self, document: str, text: str, *, library: str = "default", tenant: str = "default",
        metadata: Mapping[str, object] | None = None, with_codes: bool = True,
        content: str | None = None,
    ) -> list[str]:  # fmt: skip
        """Store a document, a chunk a paragraph; return its chunk ids, which begin with `content`."""
        content = content or f"{document}:{len(text):x}"
        self.seq += 1
        spans = [
            (match.start(), match.end())
            for match in re.finditer(r"\S(?:.*?\S)?(?=\s*(?:\n\n|\Z))", text, re.S)
        ]
        texts = [text[start:end] for start, end in spans]
        vectors_ND, encoded = await self.embedder.embed_passages_with_tokens(
            texts, "int8" if self.spec.tokens == "none" else self.spec.tokens
        )
        ids = []
        for ordinal, (start, end) in enumerate(spans):
            chunk_id = f"{content}:{ordinal}"
            passage = Passage(
                chunk_id, content.partition(":")[0], document, library, text[start:end], start, end
            )
            self.rows[chunk_id] = Row(
                passage, text, tenant, metadata or {}, vectors_ND[ordinal],  # pyright: ignore[reportArgumentType]
                encoded.codes[ordinal] if with_codes and self.spec.tokens != "none" else None,
                Counter(terms_of(text[start:end])),
            )  # fmt: skip
            ids.append(chunk_id)
        return ids

    def remove_document(self, document_id: str) -> None:
        """Forget a document; nothing happens where there is none."""
        gone = [chunk_id for chunk_id, row in self.rows.items() if row.passage.document_id == document_id]
        for chunk_id in gone:
            del self.rows[chunk_id]
        self.seq += bool(gone)

    async def term_stats(
        self, version: str, terms: Sequence[str], deadline_s: float | None = None
    ) -> TermStats:
        await self._begin("term_stats", version)
        return self._stats(terms)

    async def candidates(
        self,
        version: str,
        requests: Sequence[SearchRequest],
        vectors_QD: np.ndarray,
        stats: TermStats | None,
        deadline_s: float | None = None,
    ) -> list[Candidates]:
        await self._begin("candidates", version)
        return [self._candidates(*pair, stats) for pair in zip(requests, vectors_QD, strict=True)]

    async def vectors(self, version: str, chunk_ids: Sequence[str]) -> dict[str, np.ndarray]:
        await self._begin("vectors", version)
        return {chunk_id: self.rows[chunk_id].vector_D for chunk_id in chunk_ids if chunk_id in self.rows}

    async def token_codes(self, version: str, chunk_ids: Sequence[str]) -> dict[str, bytes]:
        await self._begin("token_codes", version)
        rows = ((chunk_id, self.rows.get(chunk_id)) for chunk_id in chunk_ids)
        return {chunk_id: row.codes for chunk_id, row in rows if row is not None and row.codes is not None}

    async def passages(
        self, version: str, chunk_ids: Sequence[str], tenant: str, before: int = 0, after: int = 0
    ) -> dict[str, Passage]:
        await self._begin("passages", version)
        found = {}
        for chunk_id in chunk_ids:
            around = self._around(chunk_id, before, after, tenant)
            if around:
                start, end = around[0].start, around[-1].end
                row = self.rows[chunk_id]
                found[chunk_id] = replace(
                    row.passage, text=row.document_text[start:end], start=start, end=end
                )
        return found

    async def neighbours(
        self, version: str, chunk_id: str, before: int, after: int, tenant: str
    ) -> list[Passage]:
        await self._begin("neighbours", version)
        return self._around(chunk_id, before, after, tenant)

    def _around(self, chunk_id: str, before: int, after: int, tenant: str) -> list[Passage]:
        content, _, ordinal = chunk_id.rpartition(":")
        row = self.rows.get(chunk_id)
        if row is None or row.tenant != tenant:
            return []
        ids = [f"{content}:{place}" for place in range(int(ordinal) - before, int(ordinal) + after + 1)]
        return [self.rows[one].passage for one in ids if one in self.rows]

    async def _begin(self, call: str, version: str) -> None:
        self.calls[call] += 1
        if version != self.spec.version_id:
            raise UnknownVersion(f"no index version {version!r}")
        await asyncio.sleep(self.delay_s.get(call, 0.0))
        if call in self.error:
            raise self.error[call]

    def _stats(self, terms: Sequence[str]) -> TermStats:
        counts = {term: sum(term in row.terms for row in self.rows.values()) for term in terms}
        return TermStats(len(self.rows), sum(row.terms.total() for row in self.rows.values()), counts)

    def _candidates(
        self, request: SearchRequest, vector_D: np.ndarray, stats: TermStats | None
    ) -> Candidates:
        kept = {chunk_id: row for chunk_id, row in self.rows.items() if _keeps(request, row)}
        dense, lexical = {}, {}
        if request.mode != "lexical":
            dense = {chunk_id: float(row.vector_D @ vector_D) for chunk_id, row in kept.items()}
        if request.mode != "dense":
            terms = query_terms(request.query, 64)
            stats = stats or self._stats(terms)
            lexical = {chunk_id: _bm25(terms, row.terms, stats) for chunk_id, row in kept.items()}
        limit = max(request.k, 100)
        return Candidates(
            dense=_best(dense, limit),
            lexical=_best({chunk_id: score for chunk_id, score in lexical.items() if score > 0}, limit),
            plan=f"exact {len(kept)} of {len(self.rows)}",
            seq=self.seq,
        )


def _best(scores: dict[str, float], limit: int) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit])


def _bm25(terms: Sequence[str], counts: Counter[str], stats: TermStats) -> float:
    mean = stats.num_terms / max(stats.num_chunks, 1)
    score = 0.0
    for term in terms:
        with_term = stats.chunks_with[term]
        idf = math.log(1 + (stats.num_chunks - with_term + 0.5) / (with_term + 0.5))
        if counts[term]:
            score += idf * counts[term] / (counts[term] + K1 * (1 - B + B * counts.total() / mean))
    return score


def _keeps(request: SearchRequest, row: Row) -> bool:
    return (
        row.tenant == request.tenant
        and request.library in (None, row.passage.library)
        and (not request.document_ids or row.passage.document_id in request.document_ids)
        and (request.filter is None or _holds(request.filter, row))
    )


def _holds(predicate: Filter, row: Row) -> bool:
    match predicate:
        case And(operands):
            return all(_holds(operand, row) for operand in operands)
        case Or(operands):
            return any(_holds(operand, row) for operand in operands)
        case Not(operand):
            return not _holds(operand, row)
        case Exists(name):
            return name in row.metadata
        case In(name, values):
            return row.metadata.get(name) in values
        case Compare(name, how, value):
            return name in row.metadata and _OPERATORS[how](row.metadata[name], value)
