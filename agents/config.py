"""What a user may set about agents; bounds are checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.search_loop.limits import SearchLimits
from serving.types import KVReuse


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """Settings of every graph."""

    k_passages: int = 4
    """Passages shown to the model, 1 to 50."""
    num_candidates: int = 8
    """Hits asked of retrieval, before passages that repeat each other are removed; at least k_passages."""
    max_query_chars: int = 2_000
    """Characters sent to search, 1 to retrieval.max_query_chars; of a longer question the beginning."""
    max_answer_tokens: int = 128
    """Most tokens of an answer, 1 to 8,192."""
    temperature: float = 0.0
    """0 takes the most likely token, which is what cited answers want; up to 2."""
    max_question_chars: int = 4_000
    """Longest question accepted, 1 to 100,000 characters."""
    support_threshold: float = 0.6
    """Share of a statement's content that one passage sentence must hold for it to be cited, in (0, 1]."""
    relevance_threshold: float = 0.25
    """Share of the question's content the sentence that supports a statement must be about, in [0, 1]."""
    short_relevance_threshold: float = 0.25
    """The same for an answer of a few words, which stands in many sentences by chance, in [0, 1]."""
    short_relevance_ratio: float = 0.8
    """And as a share of what the sentence most about the question reaches, in [0, 1]."""
    num_quotes: int = 3
    """Most quotes shown when a run abstains, 1 to 20."""
    quote_threshold: float = 0.2
    """Share of the question's content a quote must be about, in [0, 1]."""
    reuse: KVReuse = field(default_factory=KVReuse)
    """What KV of earlier prompts an answer may use: `exact`, or `blend` for passages wherever they stand."""
    search_loop: SearchLimits = field(default_factory=SearchLimits)
    """Limits of the `multi_hop` graph's loop; a model trained in the loop was trained within the same."""
    history_turns: int = 4
    """Answered exchanges of the thread the model is shown, 0 to 100."""
    thread_ttl_s: float = 30 * 86_400.0
    """Seconds after its last turn at which a thread is deleted, more than 0."""

    def __post_init__(self) -> None:
        _within("k_passages", self.k_passages, 1, 50)
        _within("num_candidates", self.num_candidates, self.k_passages, 1_000)
        _within("max_query_chars", self.max_query_chars, 1, 100_000)
        _within("max_answer_tokens", self.max_answer_tokens, 1, 8_192)
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("max_question_chars", self.max_question_chars, 1, 100_000)
        _within("support_threshold", self.support_threshold, 0.01, 1.0)
        _within("relevance_threshold", self.relevance_threshold, 0.0, 1.0)
        _within("short_relevance_threshold", self.short_relevance_threshold, 0.0, 1.0)
        _within("short_relevance_ratio", self.short_relevance_ratio, 0.0, 1.0)
        _within("num_quotes", self.num_quotes, 1, 20)
        _within("quote_threshold", self.quote_threshold, 0.0, 1.0)
        _within("history_turns", self.history_turns, 0, 100)
        if not self.thread_ttl_s > 0:
            raise ValueError(f"agents.thread_ttl_s must be > 0 seconds, got {self.thread_ttl_s}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"agents.{name} must be from {low} to {high}, got {value}")
