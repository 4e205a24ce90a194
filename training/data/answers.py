"""Comparing answers: SQuAD's exact match and F1, and whether a passage holds an answer.

Source: Rajpurkar et al. 2016 (https://arxiv.org/abs/1606.05250) and the scorer of SQuAD 2.0,
`evaluate-v2.0.py`; `holds_answer` adds the word-run match of DPR (https://arxiv.org/abs/2004.04906,
`has_answer`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

JUDGEMENTS = frozenset(["yes", "no", "noanswer"])
"""Normalised answers that are verdicts: no passage needs to hold them, and one that does proves nothing."""

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Return the text as SQuAD's scorer compares it: in lower case, without punctuation and articles."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(predicted: str, accepted: Sequence[str]) -> float:
    """Return 1.0 where the normalised prediction equals an accepted answer, else 0.0.

    Args:
        predicted: The answer given; empty where none was.
        accepted: Right answers; empty where the right answer is to give none.
    """
    return float(any(normalise(predicted) == normalise(answer) for answer in _scored(accepted)))


def f1(predicted: str, accepted: Sequence[str]) -> float:
    """Return the best F1 over words, 0 to 1, of a prediction with the accepted answers.

    Args:
        predicted: The answer given; empty where none was.
        accepted: Right answers; empty where the right answer is to give none.
    """
    return max(_f1(normalise(predicted).split(), normalise(answer).split()) for answer in _scored(accepted))


def _scored(accepted: Sequence[str]) -> Sequence[str]:
    # As the scorer does: answers that normalise to nothing count only where there is no other.
    return [answer for answer in accepted if normalise(answer)] or [""]


def _f1(predicted: list[str], accepted: list[str]) -> float:
    if not predicted or not accepted:
        return float(predicted == accepted)
    num_shared = sum((Counter(predicted) & Counter(accepted)).values())
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / len(predicted), num_shared / len(accepted)
    return 2 * precision * recall / (precision + recall)


class AnswerText:
    """A text prepared once for being asked which answers it holds."""

    __slots__ = ("_normalised", "_words")

    def __init__(self, text: str) -> None:
        """Prepare both forms that answers are looked for in."""
        self._normalised = f" {normalise(text)} "
        self._words = _word_run(text)

    def holds(self, answers: Iterable[str]) -> bool:
        """Return whether an answer stands in the text as whole words.

        Compared twice: as SQuAD normalises (`U.S.` is `us`), and with punctuation between words (`200` stands
        in `$200-300`). An answer that normalises to nothing is held by no text.
        """
        for answer in answers:
            bare = normalise(answer)
            if bare and (f" {bare} " in self._normalised or _word_run(answer) in self._words):
                return True
        return False


def _word_run(text: str) -> str:
    return f" {' '.join(_WORD.findall(unicodedata.normalize('NFKC', text).lower()))} "


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Return whether an answer stands in the text as whole words; see `AnswerText.holds`."""
    return AnswerText(text).holds(answers)
