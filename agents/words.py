"""Words of a text as matching keys, with exact code-point offsets into the text they came from."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# One character of a script written without spaces is a word of its own.
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Combining marks are not `\w`, yet belong to the letter before them (decomposed accents, Indic vowels).
_MARKS = r"\u0300-\u036f\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(
    rf"\d++(?:[.,]\d++)*+"
    rf"|[{_UNSPACED}]"
    rf"|(?:(?![{_UNSPACED}])[^\W_]|[{_MARKS}])+(?:['\u2019](?:(?![{_UNSPACED}])[^\W_])+)*"
)


def word_set(text: str) -> frozenset[str]:
    """Return the words of a space-separated list."""
    return frozenset(text.split())


_NUMBER_NAMES = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBER_WORDS = {name: str(value) for value, name in enumerate(_NUMBER_NAMES.split(), start=2)}

NEGATIONS = word_set(
    "no not never none neither nor nobody nothing without cannot isn't aren't wasn't weren't don't doesn't "
    "didn't won't can't couldn't shouldn't wouldn't hasn't haven't hadn't"
)
"""Words that turn a statement round."""

STOPWORDS = NEGATIONS | word_set(
    "a an the this that these those it its they them their he him his she her we our us you your i me my "
    "one is are was were be been being am do does did done has have had having will would shall should can "
    "could may might must and or but if then than as so because while of in on at by for from to into onto "
    "with about over under between during after before also just only very too such same other own each "
    "every any some all more most less least there here what which who whom whose when where why how many "
    "much long far often yes please tell explain describe name called know say says said give given answer "
    "question passage passages document documents according text mean"
)
"""English words that carry no content; other languages rely on the weights of `agents.evidence`."""


class Word(NamedTuple):
    """A word and where it stands."""

    key: str
    """Folded form: case, width and accents removed; numbers without thousands separators."""
    stem: str
    """Key without a common English ending; what overlap is counted on."""
    start: int
    """Offset of its first character."""
    end: int
    """Offset after its last character."""
    is_number: bool
    """Written with digits alone."""
    is_name: bool
    """Written as a name: a capital away from the start, inner capitals, or letters mixed with digits."""

    @property
    def is_content(self) -> bool:
        """Return whether the word says something by itself."""
        return self.key not in STOPWORDS and (len(self.key) > 1 or not self.key.isascii() or self.is_number)


def _fold(raw: str) -> str:
    text = unicodedata.normalize("NFKD", raw.replace("\u2019", "'"))
    return "".join(char for char in text if not unicodedata.combining(char)).casefold()


def _stem(key: str) -> str:
    if not key.isascii() or not key.isalpha() or len(key) < 4:
        return key
    if key.endswith("ies") and len(key) > 4:
        return key[:-3] + "y"
    if key.endswith("s") and not key.endswith(("ss", "us", "is")):
        key = key[:-1]
    for ending in ("ing", "ed"):
        if key.endswith(ending) and len(key) - len(ending) >= 3:
            key = key[: -len(ending)]
            if key[-1] == key[-2] and key[-1] not in "lsz":
                key = key[:-1]
            break
    return key[:-1] if key.endswith("e") and len(key) > 3 else key


def _is_name(raw: str, first: bool) -> bool:
    if any(char.isupper() for char in raw[1:]) or (raw[0].isalpha() and any(char.isdigit() for char in raw)):
        return True
    return raw[0].isupper() and not first


def words(text: str, offset: int = 0) -> tuple[Word, ...]:
    """Return the words of a text in order.

    Args:
        text: Any text.
        offset: Added to every offset, for a text cut out of a longer one.
    """
    found: list[Word] = []
    for match in _WORD.finditer(text):
        raw = match.group()
        key = _fold(raw)
        is_number = raw[0].isdigit()
        if is_number:
            key = key.replace(",", "")
        elif key.endswith("'s"):
            key = key[:-2]
        if not key:
            continue
        key = _NUMBER_WORDS.get(key, key)
        name = not is_number and _is_name(raw, not found)
        found.append(Word(key, _stem(key), match.start() + offset, match.end() + offset, is_number, name))
    return tuple(found)
