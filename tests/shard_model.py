"""A shard beside the same documents in plain Python: what searches must return, computed the slow way."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.lexical import query_terms, terms_of
from retrieval.shard.shard import Shard
from retrieval.truth.records import Vectors
from retrieval.truth.store import Embedded, document_id_of
from retrieval.types import Chunk, DocumentText, Metadata, Record, SearchRequest
from retrieval.vectors import codecs
from retrieval.versions import VersionSpec

DIM = 8
CONFIG = RetrievalConfig()
SPEC = VersionSpec("packaged", f"hash{DIM:012d}", DIM, 180, 20, 2000)
OTHER_SPEC = VersionSpec("packaged", f"hash{DIM:012d}", DIM, 180, 20, 2000, vectors="int8")


def vector_of(text: str) -> np.ndarray:
    """Return a unit vector that depends on the text alone."""
    rng = np.random.default_rng(list(text.encode()) or [0])
    return codecs.unit(rng.standard_normal((1, DIM)), DIM)[0]


@dataclass(frozen=True)
class Held:
    """A chunk that must be found."""

    chunk_id: str
    tenant: str
    library: str
    text: str
    metadata: Metadata


@dataclass
class Model:
    """What the shard must hold."""

    chunks: dict[str, list[Held]] = field(default_factory=dict)

    def dense(self, request: SearchRequest, query_D: np.ndarray) -> list[tuple[str, float]]:
        """Return chunk ids and cosines, best first, ties by id, however many there are."""
        scored = []
        for held in self._seen(request):
            score = vector_of(held.text).astype(np.float64) @ query_D.astype(np.float64)
            scored.append((held.chunk_id, float(np.float32(score))))
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))

    def lexical(self, request: SearchRequest) -> dict[str, float]:
        """Return BM25 by chunk id, with the statistics of all live chunks."""
        lengths = [len(terms_of(held.text)) for held in self._all()]
        counts = [Counter(terms_of(held.text)) for held in self._all()]
        mean = sum(lengths) / len(lengths) if lengths else 1.0
        found: dict[str, float] = {}
        for held in self._seen(request):
            own, score = Counter(terms_of(held.text)), 0.0
            for term in query_terms(request.query, CONFIG.max_query_terms):
                if own[term]:
                    df = sum(1 for count in counts if count[term])
                    idf = math.log1p((len(counts) - df + 0.5) / (df + 0.5))
                    norm = 1 - CONFIG.bm25_b + CONFIG.bm25_b * sum(own.values()) / mean
                    score += idf * own[term] / (own[term] + CONFIG.bm25_k1 * norm)
            if score:
                found[held.chunk_id] = score
        return found

    def _all(self) -> list[Held]:
        return [held for chunks in self.chunks.values() for held in chunks]

    def _seen(self, request: SearchRequest) -> list[Held]:
        return [
            held
            for held in self._all()
            if held.tenant == request.tenant
            and request.library in (None, held.library)
            and (not request.document_ids or held.chunk_id.split(":")[0] in request.document_ids)
            and (request.filter is None or held.metadata.get("year") == request.filter.value)  # pyright: ignore
        ]


class Beside:
    """A shard and its model, changed together."""

    def __init__(self, folder: Path, config: RetrievalConfig = CONFIG) -> None:
        """Open the shard; the model begins empty."""
        self.folder, self.config, self.model = folder, config, Model()
        self.open()

    def open(self) -> None:
        """Open the shard, again or for the first time."""
        self.shard = Shard(self.folder, self.config, "s0")
        self.version = self.shard.store.make_version(SPEC)

    def reopen(self) -> None:
        """Close the shard and open it again."""
        self.shard.close()
        self.open()

    def put(self, tenant: str, name: str, text: str, metadata: Metadata | None = None) -> int:
        """Upsert a record and return the log position."""
        metadata = metadata or {}
        vectors_ND = vector_of(text)[None]
        embedded = {self.version.number: Vectors(vectors_ND)}
        seq = self.shard.store.upsert(tenant, "l", [Record(name, text, None, metadata)], embedded)
        self.acknowledge(tenant, name, text, metadata)
        return seq

    def acknowledge(self, tenant: str, name: str, text: str, metadata: Metadata | None = None) -> None:
        """Note in the model that a record is in the shard."""
        self._hold(document_id_of(tenant, "l", name), tenant, [text], metadata or {}, text)

    def put_file(self, tenant: str, name: str, words: list[str], metadata: Metadata | None = None) -> str:
        """Take a file of one chunk a word to ready and return its id."""
        metadata, data = metadata or {}, " ".join(words).encode()
        document = self.shard.add(name, data, "l", tenant, metadata)
        work = self.shard.store.claim()
        if work is not None:  # None: these very bytes answer already.
            chunks, at = [], 0
            for ordinal, word in enumerate(words):
                chunks.append(Chunk(ordinal, word, at, at + len(word)))
                at += len(word) + 1
            vectors_ND = np.stack([vector_of(word) for word in words])
            embedded = Embedded(chunks, vectors_ND)
            assert self.shard.store.finish(work, "text/plain", DocumentText(" ".join(words)), embedded)
        self._hold(document.document_id, tenant, words, metadata, " ".join(words))
        return document.document_id

    def delete(self, tenant: str, name: str) -> None:
        """Delete a document, if it is there."""
        document_id = document_id_of(tenant, "l", name)
        if document_id in self.model.chunks:
            self.shard.store.delete(document_id, tenant)
            del self.model.chunks[document_id]

    def check(self, request: SearchRequest) -> None:
        """Compare both legs of one search with the model."""
        query_D = vector_of(request.query)
        (found,) = self.shard.candidates(None, [request], query_D[None])
        limit = max(request.k, self.config.num_candidates)
        assert list(found.dense) == self.model.dense(request, query_D)[:limit]
        expected = self.model.lexical(request)
        assert not found.skipped
        assert len(found.lexical) == min(limit, len(expected))
        for chunk_id, score in found.lexical:
            assert math.isclose(score, expected[chunk_id], rel_tol=1e-4)
        if expected:
            worst = sorted(expected.values(), reverse=True)[len(found.lexical) - 1]
            assert math.isclose(found.lexical[-1][1], worst, rel_tol=1e-4)
        assert [-score for _, score in found.lexical] == sorted(-score for _, score in found.lexical)

    def _hold(self, document_id: str, tenant: str, texts: list[str], metadata: Metadata, data: str) -> None:
        prefix = f"{document_id}:{hashlib.sha256(data.encode()).hexdigest()[:12]}"
        self.model.chunks[document_id] = [
            Held(f"{prefix}:{ordinal}", tenant, "l", text, metadata) for ordinal, text in enumerate(texts)
        ]


def compact_and_die(folder: Path, step: int) -> None:
    """Open a shard, write one more record, and compact it; SIGKILL falls at the `step`-th call of the system.

    Steps are those that make a segment durable and remove the one before.
    """
    beside, count = Beside(folder), 0
    beside.put("t", "last", "apple last", {"year": 1})

    def deadly(name: str) -> None:
        real = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        deadly(name)
    beside.shard.compact()
    beside.shard.close()


WORDS = ("apple", "pear", "plum", "figs", "quince")
TENANTS = ("t", "u")


def fill(beside: Beside, count: int = 40) -> None:
    for number in range(count):
        words = f"{WORDS[number % 5]} {WORDS[number % 3]} n{number}"
        beside.put(TENANTS[number % 2], f"r{number}", words, {"year": number % 4})


def segment_of(beside: Beside) -> Path:
    (folder,) = [path for path in (beside.folder / "segments" / "1").iterdir() if path.is_dir()]
    return folder


ALL = SearchRequest("apple plum", tenant="t", k=5)


def wait_until(holds) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 s")
