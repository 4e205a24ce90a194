"""Sentences of the retrieved passages as evidence: what each holds, and how much it is about the question.

Weights are inverse document frequencies over the sentences at hand, so a word every sentence holds proves
little, and a word of the question that no sentence holds counts most against all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agents.sentences import Sentence, sentences
from agents.words import NEGATIONS, Word, word_set, words
from retrieval.types import Passage

_ANAPHORA = word_set(
    "it its they them their he his him she her this that these those such both the there here"
)
"""Openers of a sentence that talks about what was named before it."""

_SECTION_SHARE = 0.7
"""How far a question word in the heading, table header or document name counts as in the sentence."""
_ANAPHORA_SHARE = 0.8
"""The same for the neighbouring sentences of one that points back."""
_NEAR_SHARE = 0.3
"""The same for the neighbours of a sentence that stands alone."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One sentence, or two adjacent ones, of a passage."""

    passage: Passage
    """Where it stands."""
    rank: int
    """0 for the best passage."""
    start: int
    """Offset in the passage's text."""
    end: int
    """Offset after it."""
    words: tuple[Word, ...]
    """Its words, offsets in the passage's text."""
    stems: frozenset[str]
    """Stems of its content words."""
    section: frozenset[str]
    """Stems of its heading, table header and document name."""
    near: frozenset[str]
    """Stems of the sentences beside it."""

    @property
    def text(self) -> str:
        """Return its characters."""
        return self.passage.text[self.start : self.end]

    @property
    def is_negated(self) -> bool:
        """Return whether it denies something."""
        return any(word.key in NEGATIONS for word in self.words)

    @property
    def points_back(self) -> bool:
        """Return whether it opens by referring to what stands before it."""
        return bool(self.words) and self.words[0].key in _ANAPHORA

    @property
    def span(self) -> tuple[str, int, int]:
        """Return document id, start and end in the document's text."""
        return self.passage.document_id, self.passage.start + self.start, self.passage.start + self.end


def content_stems(found: Iterable[Word]) -> frozenset[str]:
    """Return the stems of the words that carry content."""
    return frozenset(word.stem for word in found if word.is_content)


class EvidenceSet:
    """All sentences of the passages of a run, weighted."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Cut the passages into sentences.

        Args:
            passages: Best first, as shown to the model: passage i has the mark [i + 1].
        """
        self.passages = tuple(passages)
        self.sentences: list[Evidence] = []
        self.pairs: list[Evidence] = []
        for rank, passage in enumerate(passages):
            self._add(rank, passage)
        self._frequency = Counter(
            stem for evidence in self.sentences for stem in evidence.stems | evidence.section
        )

    def _add(self, rank: int, passage: Passage) -> None:
        spans = sentences(passage.text)
        found = [words(passage.text[span.start : span.end], span.start) for span in spans]
        stems = [content_stems(one) for one in found]
        title = content_stems(words(passage.document.rsplit(".", 1)[0].replace("_", " ").replace("-", " ")))
        heading: frozenset[str] = frozenset()
        header: frozenset[str] = frozenset()
        previous: Sentence | None = None
        for i, span in enumerate(spans):
            is_first_row = span.kind == "row" and (previous is None or previous.kind != "row")
            previous = span
            if span.kind == "heading":
                heading = stems[i]
                continue
            if is_first_row:
                header = stems[i]
            near = frozenset().union(*stems[max(0, i - 1) : i], *stems[i + 1 : i + 2])
            section = title | heading | (header if span.kind == "row" else frozenset())
            self.sentences.append(
                Evidence(passage, rank, span.start, span.end, found[i], stems[i], section, near)
            )
            # Two sentences of one paragraph can support a statement that joins them.
            if i + 1 < len(spans) and spans[i + 1].block == span.block:
                self.pairs.append(
                    Evidence(
                        passage,
                        rank,
                        span.start,
                        spans[i + 1].end,
                        found[i] + found[i + 1],
                        stems[i] | stems[i + 1],
                        section,
                        frozenset().union(*stems[max(0, i - 1) : i], *stems[i + 2 : i + 3]),
                    )
                )

    def weight(self, stem: str) -> float:
        """Return how much a word tells, from near 0 (everywhere) up; unseen words tell most."""
        count = self._frequency[stem]
        return math.log(1.0 + (len(self.sentences) + 1.0) / (count + 0.5))

    def share(self, wanted: Sequence[str], held: frozenset[str]) -> float:
        """Return the weighted share of the wanted stems that are held, in [0, 1]; 0 when none is wanted."""
        total = got = 0.0
        for stem in wanted:
            weight = self.weight(stem)
            total += weight
            got += weight if stem in held else 0.0
        return got / total if total else 0.0

    def relevance(self, question: frozenset[str], evidence: Evidence) -> float:
        """Return how much a sentence is about the question, in [0, 1].

        Words in the sentence count in full; words in its heading and document name, and in its
        neighbours, count for less, and the neighbours of a sentence that points back count for more. The
        root keeps words the passages lack ("meant") from outweighing the topic, which they all hold.
        """
        near_share = _ANAPHORA_SHARE if evidence.points_back else _NEAR_SHARE
        total = got = 0.0
        for stem in sorted(question):  # a fixed order, so that equal sums stay equal
            weight = math.sqrt(self.weight(stem))
            total += weight
            if stem in evidence.stems:
                got += weight
            elif stem in evidence.section:
                got += weight * _SECTION_SHARE
            elif stem in evidence.near:
                got += weight * near_share
        return got / total if total else 0.0
