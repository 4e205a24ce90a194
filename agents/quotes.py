"""What a run shows when it abstains: the sentences of the passages that are most about the question."""

from __future__ import annotations

from collections.abc import Sequence

from agents.asked import Asked
from agents.citation import cite
from agents.evidence import EvidenceSet
from agents.sanitise import safe
from agents.state import Citation

_RANK_WEIGHT = 0.15
"""How much the retriever's order weighs against a sentence's own words."""


def best_quotes(
    asked: Asked, evidence: EvidenceSet, *, num_quotes: int, threshold: float
) -> tuple[Citation, ...]:
    """Return the sentences most about the question, best first, numbered from 1.

    The best sentence of the best passage is always among them, since retrieval may have found by meaning
    what shares no word with the question; others need `threshold` of the question's weight.
    """
    scored = [
        (evidence.relevance(asked.stems, sentence) + _RANK_WEIGHT / (1 + sentence.rank), -order, sentence)
        for order, sentence in enumerate(evidence.sentences)
        if sentence.words
    ]
    scored.sort(key=lambda one: one[:2], reverse=True)
    chosen: list[Citation] = []
    has_best_passage = False
    for _, _, sentence in scored:
        relevance = evidence.relevance(asked.stems, sentence)
        is_first_of_best = sentence.rank == 0 and not has_best_passage
        if relevance < threshold and not is_first_of_best:
            continue
        document_id, start, end = sentence.span
        if any(c.document_id == document_id and c.start < end and start < c.end for c in chosen):
            continue
        if len(chosen) == num_quotes:
            break
        has_best_passage |= sentence.rank == 0
        chosen.append(cite(sentence, len(chosen) + 1, relevance))
    return tuple(chosen)


def quoted(sentence: str, citations: Sequence[Citation]) -> str:
    """Return a sentence followed by the quotes as numbered Markdown block quotes."""
    lines = [f"> {' '.join(safe(citation.quote).split())} [{citation.number}]" for citation in citations]
    return "\n\n".join([sentence, *lines])
