"""What a question asks for: its content, the names it gives, and the kind of a short answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from agents.words import Word, word_set, words
from retrieval.types import Passage

_QUANTITIES = word_set(
    "one once twice half quarter third dozen hundred hundreds thousand thousands million millions billion "
    "trillion none zero single january february march april may june july august september october november "
    "december monday tuesday wednesday thursday friday saturday sunday spring summer autumn winter today "
    "yesterday century"
)
"""Words that answer "when" or "how many" without digits."""


@lru_cache(maxsize=256)
def _squeezed(text: str) -> str:
    return "".join(word.key for word in words(text))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, read."""

    stems: frozenset[str]
    """Stems of its content words; with those of the turn before when it has fewer than two itself."""
    names: tuple[Word, ...]
    """Names and numbers it gives."""
    wants_number: bool
    """It asks when, what year, how many or how much."""
    wants_name: bool
    """It asks who."""

    @classmethod
    def read(cls, question: str, before: str = "") -> Asked:
        """Return what a question asks for.

        Args:
            question: The user's words.
            before: The user's turn before; "and when?" is about what was asked there.
        """
        asked = words(question)
        stems = frozenset(word.stem for word in asked if word.is_content)
        if len(stems) < 2:
            stems |= frozenset(word.stem for word in words(before) if word.is_content)
        keys = [word.key for word in asked]
        pairs = set(pairwise(keys))
        return cls(
            stems=stems,
            names=tuple(word for word in asked if word.is_name or word.is_number),
            wants_number=keys[:1] == ["when"]
            or bool(pairs & {("what", "year"), ("which", "year"), ("how", "many"), ("how", "much")}),
            wants_name=keys[:1] == ["who"],
        )

    def accepts(self, text: str, claim: Sequence[Word]) -> bool:
        """Return whether a short answer is of the kind asked for: a quantity for "when", a name for "who"."""
        if self.wants_number and not any(word.key[0].isdigit() or word.key in _QUANTITIES for word in claim):
            return False
        # Scripts without capitals cannot be told names apart.
        return not self.wants_name or not text.isascii() or any(char.isupper() for char in text)

    def is_named_in(self, passage: Passage) -> bool:
        """Return whether the passage or its document's name gives every name of the question.

        "Paged Attention" and "PagedAttention" are the same name.
        """
        text = _squeezed(f"{passage.document}\n{passage.text}")
        return all(name.key in text or name.stem in text for name in self.names)
