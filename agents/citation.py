"""Citations aligned to source spans after generation, whether or not the model obeyed a format.

Each sentence of a draft is a claim. A claim is supported by the sentence of a passage that holds its
content: all of its numbers and names, enough of the weight of its other words in about the same order, and
in particular of the words the question did not already give. A short claim ("1945", "UC Berkeley") must
stand in the passage word for word, in a sentence that is about the question. What finds no support is left
out of the answer; when nothing is left the run abstains: a careless match is worse than none.

Marks the model wrote ([2]) are taken out and used only to prefer one of several equally good sentences.
Limits: overlap of words cannot see who did what to whom beyond word order, nor recognise a paraphrase
that shares no words; the first is why the thresholds are high, the second costs answers, not truth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agents.asked import Asked
from agents.config import AgentsConfig
from agents.evidence import Evidence, EvidenceSet
from agents.sanitise import plain, safe
from agents.sentences import sentences
from agents.state import Citation
from agents.words import NEGATIONS, Word, words
from serving.prompt import NOT_IN_DOCUMENTS

_MARK = re.compile(r"\s*(?:\[\s*\d{1,3}(?:\s*[,;\u2013-]\s*\d{1,3})*\s*\]|【\s*\d{1,3}[^】\n]{0,20}】)(?!\()")
_NUMBER = re.compile(r"\d+")
_TAIL = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]+[\"'\u201d\u2019\u00bb)\]]*$")
_REFUSAL = tuple(word.key for word in words(NOT_IN_DOCUMENTS))

_DENIAL_REACH = 2
"""Words before an answer in which a denial speaks of it: "not in 1944"."""

MIN_SENTENCE_WORDS = 4
"""Fewer words are a fragment, which only makes sense as the answer itself."""

_PAIR_COST = 0.15
"""What two sentences must add to the support of one to be quoted instead."""
_HINT_GAIN = 0.1
"""What the model's own mark adds; it decides between near equals only."""
_RANK_COST = 0.01
"""What a place in the retriever's order takes away; it decides between equals."""

_MIN_ORDER = 0.5
"""Least share of a statement's words that must follow one another as in the sentence."""

MAX_SHORT_CLAIM_WORDS = 6
"""A claim of at most so many content words stands in many places by chance: it must be about the question."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """A draft with its support."""

    answer: str
    """Supported sentences with [n] marks; empty when none is supported."""
    citations: tuple[Citation, ...]
    """In order of number."""
    num_claims: int
    """Sentences of the draft that claim something."""
    num_supported: int
    """Of those, sentences a passage supports."""
    is_refusal: bool
    """The model said that the documents do not hold the answer."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """One sentence of a draft, without marks."""

    text: str
    lead: str
    words: tuple[Word, ...]
    hints: frozenset[int]

    @property
    def is_short(self) -> bool:
        return sum(word.is_content for word in self.words) <= MAX_SHORT_CLAIM_WORDS

    @property
    def is_negated(self) -> bool:
        return any(word.key in NEGATIONS for word in self.words)


@dataclass(frozen=True, slots=True)
class _Support:
    evidence: Evidence
    score: float
    relevance: float


def _claims(draft: str) -> list[_Claim]:
    """Return the sentences of a draft; `lead` is the white space and list mark before each."""
    marks = [
        (match.start(), frozenset(int(n) for n in _NUMBER.findall(match.group())))
        for match in _MARK.finditer(draft)
    ]
    kept, position, moved = [], 0, []
    for match, (start, numbers) in zip(_MARK.finditer(draft), marks, strict=True):
        kept.append(draft[position:start])
        moved.append((sum(map(len, kept)), numbers))
        position = match.end()
    text = "".join([*kept, draft[position:]])
    found, end = [], 0
    spans = sentences(text)
    for i, span in enumerate(spans):
        last = i + 1 == len(spans)
        hints: frozenset[int] = frozenset()
        for at, numbers in moved:
            if span.start < at and (last or at < spans[i + 1].start + 1):
                hints |= numbers if at > end or i == 0 else frozenset()
        found.append(
            _Claim(
                text[span.start : span.end], text[end : span.start], words(text[span.start : span.end]), hints
            )
        )
        end = span.end
    return found


def _is_refusal(claim: _Claim) -> bool:
    keys = tuple(word.key for word in claim.words)
    return keys[: len(_REFUSAL)] == _REFUSAL


def _contains(sequence: Sequence[Word], wanted: Sequence[Word]) -> bool:
    """Return whether the words stand in the sequence one after another, and not right after a denial."""
    held = [word.key for word in sequence]
    keys = [word.key for word in wanted]
    return any(
        held[i : i + len(keys)] == keys and not NEGATIONS.intersection(held[max(0, i - _DENIAL_REACH) : i])
        for i in range(len(held) - len(keys) + 1)
    )


def _order(claim: Sequence[str], held: Sequence[str]) -> float:
    """Return the longest common subsequence as a share of the claim's words."""
    row = [0] * (len(held) + 1)
    for stem in claim:
        diagonal = 0
        for j, other in enumerate(held, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if stem == other else max(row[j], row[j - 1])
    return row[-1] / len(claim) if claim else 0.0


class Aligner:
    """Finds the support of claims in the passages of one run."""

    def __init__(self, asked: Asked, evidence: EvidenceSet, config: AgentsConfig) -> None:
        """Prepare for one question.

        Args:
            asked: The question.
            evidence: Sentences of the passages shown to the model.
            config: Thresholds.
        """
        self._config = config
        self._evidence = evidence
        self._asked = asked
        best = max((evidence.relevance(asked.stems, one) for one in evidence.sentences), default=0.0)
        self._short_relevance = max(config.short_relevance_threshold, config.short_relevance_ratio * best)

    def align(self, draft: str) -> Alignment:
        """Return the draft with its unsupported sentences left out and the others cited."""
        claims = [claim for claim in _claims(safe(plain(draft))) if claim.words]
        if any(_is_refusal(claim) for claim in claims):
            return Alignment("", (), len(claims), 0, is_refusal=True)
        found = [(claim, self._support(claim)) for claim in claims]
        # Support alone does not make an answer: something in it must be about what was asked. What goes with
        # that may be about anything, unless it is a mere fragment.
        if not any(support and self._is_relevant(claim, support) for claim, support in found):
            return Alignment("", (), len(claims), 0, is_refusal=False)
        supports = [
            (claim, support)
            for claim, support in found
            if support and (len(claim.words) >= MIN_SENTENCE_WORDS or self._is_relevant(claim, support))
        ]
        parts: list[str] = []
        citations: list[Citation] = []
        for claim, support in supports:
            number = _number(citations, support)
            lead = claim.lead if parts else claim.lead.lstrip()
            parts.append(lead + _marked(claim.text, number))
        num_supported = sum(support is not None for _, support in supports)
        return Alignment(
            "".join(parts).strip(), tuple(citations), len(claims), num_supported, is_refusal=False
        )

    def _support(self, claim: _Claim) -> _Support | None:
        """Return the best support of a claim; a long one may be supported by two sentences together."""
        content = [word for word in claim.words if word.is_content]
        if not content:
            return None
        candidates = [(evidence, 0.0) for evidence in self._evidence.sentences]
        # Two sentences together say almost any short thing; a long one may join what two say.
        if not claim.is_short:
            candidates += [(evidence, _PAIR_COST) for evidence in self._evidence.pairs]
        best: tuple[float, _Support] | None = None
        for evidence, cost in candidates:
            support = self._verbatim(claim, content, evidence) or self._stated(claim, content, evidence)
            if support:
                hinted = _HINT_GAIN if evidence.rank + 1 in claim.hints else 0.0
                worth = support.score + support.relevance + hinted - cost - _RANK_COST * evidence.rank
                best = (worth, support) if best is None or worth > best[0] else best
        return best[1] if best else None

    def _is_relevant(self, claim: _Claim, support: _Support) -> bool:
        """Return whether the supporting sentence is about the question.

        A few words stand in many sentences by chance, so for them more is asked: they are of the kind the
        question wants, the passage knows every name it gives, and no other sentence is much more about it.
        """
        if not claim.is_short:
            return support.relevance >= self._config.relevance_threshold
        return (
            support.relevance >= self._short_relevance
            and self._asked.accepts(claim.text, claim.words)
            and self._asked.is_named_in(support.evidence.passage)
        )

    def _verbatim(self, claim: _Claim, content: Sequence[Word], evidence: Evidence) -> _Support | None:
        """An extract stands in the sentence word for word and says more than the question did."""
        if claim.is_negated or all(word.stem in self._asked.stems for word in content):
            return None
        if not _contains(evidence.words, claim.words):
            return None
        return _Support(evidence, 1.0, self._evidence.relevance(self._asked.stems, evidence))

    def _stated(self, claim: _Claim, content: Sequence[Word], evidence: Evidence) -> _Support | None:
        """A statement's numbers, names and most of its other words stand in the sentence, in its order."""
        # What the question gave may stand in a heading or before a sentence that points back.
        given = evidence.section | (evidence.near if evidence.points_back else frozenset())
        held = evidence.stems | (given & self._asked.stems)
        keys = {word.key for word in evidence.words}
        if any(
            (word.is_number or word.is_name) and word.key not in keys and word.stem not in held
            for word in content
        ):
            return None
        if claim.is_negated != evidence.is_negated and not _contains(evidence.words, claim.words):
            return None
        score = self._evidence.share([word.stem for word in content], held)
        novel = [word.stem for word in content if word.stem not in self._asked.stems]
        if novel:
            score = min(score, self._evidence.share(novel, evidence.stems))
        if score < self._config.support_threshold:
            return None
        matched = [word.stem for word in content if word.stem in evidence.stems]
        if len(matched) >= 3 and _order(matched, [word.stem for word in evidence.words]) < _MIN_ORDER:
            return None
        return _Support(evidence, score, self._evidence.relevance(self._asked.stems, evidence))


def _number(citations: list[Citation], support: _Support) -> int:
    """Return the mark of a sentence; the same text seen through an overlapping chunk keeps its number."""
    document_id, start, end = support.evidence.span
    for citation in citations:
        if citation.document_id == document_id and citation.start < end and start < citation.end:
            return citation.number
    citations.append(cite(support.evidence, len(citations) + 1, support.score))
    return len(citations)


def cite(evidence: Evidence, number: int, score: float) -> Citation:
    """Return the citation of a sentence; its quote is the document's text from start to end."""
    passage = evidence.passage
    return Citation(
        number=number,
        document_id=passage.document_id,
        document=passage.document,
        chunk_id=passage.chunk_id,
        page=passage.page,
        start=passage.start + evidence.start,
        end=passage.start + evidence.end,
        quote=evidence.text,
        score=round(min(1.0, max(0.0, score)), 4),
    )


def _marked(text: str, number: int) -> str:
    tail = _TAIL.search(text)
    cut = tail.start() if tail else len(text)
    return f"{text[:cut].rstrip()} [{number}]{text[cut:]}"
