"""BM25 with statistics that are given, so that every shard scores a chunk alike.

    score(query, chunk) = sum over terms t of the query:
        ln(1 + (N - df_t + 1/2) / (df_t + 1/2))  *  tf / (tf + k1 * (1 - b + b * length / mean length))

N, df_t and the mean length are the whole collection's. This is Lucene's variant: the idf is never negative
and the constant factor k1 + 1 is left out. Arithmetic is float32, terms are added rarest first: the same
chunk has the same bits wherever it lies.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009; Kamphuis et al., ECIR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from retrieval.reader import TermStats


@dataclass(frozen=True, slots=True)
class Bm25:
    """The two parameters of BM25."""

    k1: float
    """How fast more occurrences stop counting; 0 counts presence alone."""
    b: float
    """How much long chunks are held back, 0 to 1."""


@dataclass(frozen=True, slots=True)
class QueryWeights:
    """What a query's terms weigh in a collection."""

    terms: tuple[tuple[str, np.float32], ...]
    """Distinct terms and their idf, rarest first: the order in which contributions are added."""
    constant: np.float32
    """k1 * (1 - b)."""
    per_term: np.float32
    """k1 * b / mean length, to be multiplied with a chunk's length."""

    def most_after(self, number: int) -> float:
        """Return what a row can gain at most from the terms numbered `number` and later."""
        # The factor of the term frequency is below 1.
        return sum(float(idf) for _, idf in self.terms[number:])

    def contributions(self, idf: np.float32, frequencies: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return float32[n] from frequencies uint16[n] and lengths int32[n]; all are positive."""
        counts = frequencies.astype(np.float32)
        norms = lengths.astype(np.float32)
        norms *= self.per_term
        norms += self.constant
        norms += counts
        counts /= norms
        counts *= idf
        return counts


def query_weights(terms: Iterable[str], stats: TermStats, parameters: Bm25) -> QueryWeights:
    """Return the weights of a query's terms by a collection's statistics."""
    counts = {term: min(stats.chunks_with.get(term, 0), stats.num_chunks) for term in terms}
    ordered = sorted(counts, key=lambda term: (counts[term], term))
    mean_length = stats.num_terms / stats.num_chunks if stats.num_terms else 1.0
    return QueryWeights(
        tuple(
            (term, np.float32(math.log1p((stats.num_chunks - counts[term] + 0.5) / (counts[term] + 0.5))))
            for term in ordered
        ),
        np.float32(parameters.k1 * (1 - parameters.b)),
        np.float32(parameters.k1 * parameters.b / mean_length),
    )


def added_stats(parts: Iterable[TermStats]) -> TermStats:
    """Return the statistics of a collection from those of its shards."""
    num_chunks = num_terms = 0
    chunks_with: dict[str, int] = {}
    for part in parts:
        num_chunks += part.num_chunks
        num_terms += part.num_terms
        for term, count in part.chunks_with.items():
            chunks_with[term] = chunks_with.get(term, 0) + count
    return TermStats(num_chunks, num_terms, chunks_with)
