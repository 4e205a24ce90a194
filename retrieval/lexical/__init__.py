"""The lexical leg: terms, and BM25 over a memory-mapped base and a delta in memory."""

from __future__ import annotations

from retrieval.lexical.bm25 import Bm25, added_stats
from retrieval.lexical.builder import LexicalBuilder
from retrieval.lexical.delta_postings import ReadTerms
from retrieval.lexical.lexical_base import LexicalBase
from retrieval.lexical.segments import LexicalSegments, TieKey
from retrieval.lexical.tokens import MAX_TERM_CHARS, STOP_WORDS, query_terms, terms_of

__all__ = [
    "MAX_TERM_CHARS",
    "STOP_WORDS",
    "Bm25",
    "LexicalBase",
    "LexicalBuilder",
    "LexicalSegments",
    "ReadTerms",
    "TieKey",
    "added_stats",
    "query_terms",
    "terms_of",
]
