"""What the killed process writes, made of names and numbers alone, so that the judge can make it again.

A document is `r17` (a record, one chunk) or `f3` (a file, cut by words); its content is a token, a number
that is used once in a campaign. Text and vectors follow from both.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.truth.documents import document_id_of
from retrieval.truth.version_tables import Embedded
from retrieval.types import Chunk
from retrieval.vectors import codecs
from retrieval.versions import VersionSpec

DIM = 16
TENANT, LIBRARY = "campaign", "documents"
NUM_RECORDS, NUM_FILES = 2000, 60
"""Names there are; how many are taken grows and shrinks."""
CONFIG = RetrievalConfig(delta_max_rows=800, lexical_delta_max_rows=600, vector_threads=1)
"""Compacts often, so that many kills fall into a compaction."""
FIRST_SPEC = VersionSpec("hashed", "hashed-words", DIM, 2, 0, 2000, kind="exact")
SPECS = (
    FIRST_SPEC,
    replace(FIRST_SPEC, vectors="float16"),
    replace(FIRST_SPEC, chunk_tokens=3, vectors="int8", dim=DIM // 2),
    replace(FIRST_SPEC, chunk_tokens=3, kind="ivf_sq8"),
)
"""Versions that are made, switched to and dropped: copied ones, and ones cut anew."""

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
_TABLE_RD = np.random.default_rng(1).standard_normal((8192, DIM)).astype(np.float32)


@dataclass(slots=True)
class Contents:
    """What a shard must hold: tokens by document name."""

    answering: dict[str, int] = field(default_factory=dict[str, int])
    """Documents that searches find."""
    queued: dict[str, int] = field(default_factory=dict[str, int])
    """Files that were accepted and wait for their turn."""

    def after(self, change: dict[str, object]) -> Contents:
        """Return the contents once an operation has happened."""
        made = Contents(dict(self.answering), dict(self.queued))
        kind, token = change["kind"], change.get("token", 0)
        names = change["names"]
        assert isinstance(names, list) and isinstance(token, int)  # noqa: PT018 - narrows for the checker
        for place, name in enumerate(names):
            if kind == "upsert":
                made.answering[name] = token + place
            elif kind == "delete":
                made.answering.pop(name, None)
                made.queued.pop(name, None)
            elif kind == "add":
                made.queued[name] = token
            else:
                made.answering[name] = token
                if made.queued.get(name) == token:
                    del made.queued[name]
        return made


def id_of(name: str) -> str:
    """Return the id of the document of a name."""
    return document_id_of(TENANT, LIBRARY, name)


@lru_cache(maxsize=16_384)
def text_of(name: str, token: int) -> str:
    """Return a document's text."""
    count = 4 if name.startswith("r") else 4 + token % 9
    return " ".join([name, f"tok{token}", *(_WORDS[(token >> place) % 8] for place in range(count))])


@lru_cache(maxsize=16_384)
def hash_of(name: str, token: int) -> str:
    """Return the content hash of a document's text."""
    return hashlib.sha256(text_of(name, token).encode()).hexdigest()


@lru_cache(maxsize=16_384)
def cut(name: str, text: str, words: int) -> list[Chunk]:
    """Return the chunks of a text: all of a record, `words` words each of a file."""
    if name.startswith("r"):
        return [Chunk(0, text, 0, len(text))]
    chunks, at, parts = [], 0, text.split(" ")
    for ordinal, start in enumerate(range(0, len(parts), words)):
        piece = " ".join(parts[start : start + words])
        chunks.append(Chunk(ordinal, piece, at, at + len(piece)))
        at += len(piece) + 1
    return chunks


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """Return float32[len(texts), DIM]: one of 8,192 directions each."""
    return _TABLE_RD[[zlib.crc32(text.encode()) % len(_TABLE_RD) for text in texts]]


def stored_vectors_of(spec: VersionSpec, texts: Sequence[str]) -> np.ndarray:
    """Return the vectors as a version gives them back, float32[len(texts), dim]."""
    unit_ND = codecs.unit(vectors_of(texts), spec.model_dim, spec.dim)
    codes_NB = codecs.encode(unit_ND, spec.vectors)
    return codecs.decode(codes_NB.tobytes(), spec.vectors, unit_ND.shape[1])


def embedded(name: str, text: str, words: int) -> Embedded:
    """Return a document's chunks with their vectors."""
    chunks = cut(name, text, words)
    return Embedded(chunks, vectors_of([chunk.text for chunk in chunks]))
