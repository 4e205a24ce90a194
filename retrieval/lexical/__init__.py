"""The lexical leg: terms, BM25 over a memory-mapped base and the store's full-text delta."""

from __future__ import annotations

from retrieval.lexical.match_expression import match_expression
from retrieval.lexical.tokens import MAX_TERM_CHARS, STOP_WORDS, query_terms, terms_of

__all__ = ["MAX_TERM_CHARS", "STOP_WORDS", "match_expression", "query_terms", "terms_of"]
