"""Fixed phrases that explain a short form, define a term, or connect two names.

Source: A. Schwartz and M. Hearst, A Simple Algorithm for Identifying Abbreviation Definitions in Biomedical
Text, PSB 2003 (the match of short and long forms); M. Hearst, COLING 1992 (lexical patterns).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from retrieval.graph.names import STARTERS
from retrieval.graph.types import Alias

_BRACKETS = re.compile(r"\(([^()]{2,60})\)")
_STANDS_FOR = re.compile(
    r"\b([A-Za-z][\w-]{1,9}),? (?:which )?(?:stands|is short|short) for ([^.;:()]{4,90})"
)
_OR = re.compile(
    r"\b([^.;:(),]{4,90}), (?:or|abbreviated(?: as)?|shortened to|(?:also |often |commonly )?"
    r"(?:known as|called)) ([A-Z][\w-]{1,9})\b"
)
_APPOSED = re.compile(r"\b([A-Z][\w-]{1,9}), (?:the |an? )([A-Z][^.;:(),]{4,80}),")
_SPLIT = re.compile(r"\S+")
_TERM = r"((?:[a-z][\w-]*)(?: [a-z][\w-]*){0,3})"
_CALLED = re.compile(
    rf"\b(?:is|are|was|were|be|been|also|often|this|it|them|method|technique|procedure|idea|policy) "
    rf"(?:sometimes |often |also |usually )?(?:called|known as|termed|named) (?:an? |the )?{_TERM}"
)
_DEFINED = re.compile(r"^(?:An? )?([A-Z][\w-]*(?: [a-z][\w-]*){0,3}) (?:is|are) (?:an?|the) [a-z]")
_CLAUSE_WORDS = "and or but because since so that which who when where is are was were"
_TERM_STOPS = STARTERS | frozenset(_CLAUSE_WORDS.split())
_VAGUE_WORDS = """aim answer approach area author baseline benefit building case cause choice condition cost
difference effect example fact figure gain goal idea instance issue kind method model name number output part
point problem procedure process purpose reason result rule score second setting size solution state step
system task test thing time training type use user value version way weakness word work"""
_VAGUE = frozenset(_VAGUE_WORDS.split())
"""Nouns that open a definition without being a term: `Training is an expensive ...`."""

_MADE = (
    "developed|created|built|written|designed|introduced|proposed|presented|described|released|published"
    "|invented|founded|made|trained|implemented|maintained"
)
_ART = r"(?: the| an?)?"
_PHRASES: dict[str, str] = {
    "is a": r"(?:is|are|was) (?:an?|the|one of the|one)(?: (?!(?:from|of|in|by|for)\b)[a-z][\w-]*){0,2}",
    "is": r"(?:is|was)",
    "part of": rf"(?:is |are |was |as )?(?:an? )?(?:part|component|member|subset) of{_ART}",
    "developed by": rf"(?:\S+ ){{0,4}}(?:{_MADE}) by{_ART}(?: [a-z]+){{0,2}}",
    "developed": (
        rf"(?:and (?:colleagues|co-authors|others) )?(?:first )?(?:{_MADE}){_ART}"
        r"(?: (?!at\b|in\b|by\b|on\b)[a-z]+)?"
    ),
    "affiliated with": rf"and (?:colleagues|co-authors|others) (?:at|from|of){_ART}",
    "published in": rf"(?:\S+ ){{0,4}}(?:published|appeared|presented|accepted) (?:in|at){_ART}",
    "based on": (
        rf"(?:\S+ ){{0,3}}(?:based|built|modelled|founded) (?:up)?on(?: top of)?{_ART}"
        rf"|(?:builds|runs) on(?: top of)?{_ART}|(?:extends|derives from){_ART}"
    ),
    "uses": (
        r"(?:also |only |then )?(?:uses|used|employs|applies|adopts|combines|relies on|calls|needs|requires"
        rf"|supports|implements|contains|includes){_ART}(?: [a-z][\w-]*)?"
    ),
    "outperforms": (
        r"(?:\S+ ){0,2}(?:outperform(?:s|ed)|beats?|surpass(?:es|ed)?|exceed(?:s|ed))"
        r"(?: the| both)?(?: [a-z]+)?"
        rf"|(?:\S+ ){{0,3}}(?:improved|improves|raised|raises) .{{1,60}} over{_ART}"
        rf"|(?:is|was) (?:\S+ ){{0,4}}(?:better|faster|smaller|cheaper) than{_ART}"
    ),
    "compared with": rf"(?:is|are|was|were) (?:often )?compared (?:with|to){_ART}|versus|vs",
    "available in": rf"(?:\S+ ){{0,3}}(?:available|included|integrated|implemented|found) in{_ART}",
    "called": r"(?:is|are|was) (?:also |often |usually )?(?:called|known as|named)",
    "replaces": rf"(?:replaces|replaced|succeeds|succeeded|supersedes){_ART}",
}
"""Labels and the whole stretch between two names that stands for each; the first that fits counts."""
_LABELS = tuple((label, re.compile(phrase)) for label, phrase in _PHRASES.items())


def aliases(sentence: str) -> Iterator[Alias]:
    """Yield explained short forms: `long (SHORT)`, `SHORT, the Long,`, `long, or SHORT`."""
    for match in _BRACKETS.finditer(sentence):
        inside, before = match.group(1).strip(), sentence[: match.start()].rstrip()
        inside = re.split(r"[,;]", inside)[0].strip()
        if _is_short(inside):
            long = _long_form(inside, before)
            if long:
                yield Alias(inside, long)
        elif before:
            short = before.split()[-1].strip("\"'\u201c\u201d,")
            if _is_short(short) and _long_form(short, inside) == inside:
                yield Alias(short, inside)
    for match in _STANDS_FOR.finditer(sentence):
        short, words = match.group(1), match.group(2).strip("\"'\u201c\u201d ").split()
        for num_words in range(min(len(words), len(short) + 3), 0, -1):
            long = " ".join(words[:num_words]).strip("\"'\u201c\u201d,")
            if (
                _is_short(short)
                and long.lower().split()[-1] not in STARTERS
                and _long_form(short, long) == long
            ):
                yield Alias(short, long)
                break
    for match in _APPOSED.finditer(sentence):
        if _is_short(match.group(1)) and _long_form(match.group(1), match.group(2)) == match.group(2):
            yield Alias(match.group(1), match.group(2))
    for match in _OR.finditer(sentence):
        long = _long_form(match.group(2), match.group(1)) if _is_short(match.group(2)) else None
        if long:
            yield Alias(match.group(2), long)


def defined_terms(sentence: str) -> Iterator[str]:
    """Yield lower-case terms that a sentence introduces: `X is a ...`, `called X`."""
    match = _DEFINED.match(sentence)
    if match:
        words = match.group(1).split()
        opening = words[0].lower()
        if len(words) > 1 and not _TERM_STOPS & {opening, *words[1:]} and opening not in _VAGUE:
            yield " ".join(words)
    for match in _CALLED.finditer(sentence):
        words = []
        for word in match.group(1).split():
            if word in _TERM_STOPS or word.endswith("ly"):
                break
            words.append(word)
        if len(words) > 1:
            yield " ".join(words)


def relation_label(between: str) -> str | None:
    """Return the label of the words between two names, or None when they are no known phrase."""
    text = between.strip(" ,\"'\u201c\u201d").lower()
    if not text or len(text) > 100 or re.search(r"[.;:()]|\bnot\b|n't", text):
        return None
    for label, pattern in _LABELS:
        if pattern.fullmatch(text):
            return label
    return None


def _is_short(text: str) -> bool:
    return (
        2 <= len(text) <= 10
        and text[0].isalnum()
        and " " not in text
        and sum(char.isupper() for char in text) >= 2
    )


def _long_form(short: str, before: str) -> str | None:
    """Return the words at the end of `before` whose letters spell `short`, or None (Schwartz and Hearst)."""
    words = _SPLIT.findall(before)
    before = " ".join(words[-min(len(short) + 5, 2 * len(short)) :])
    letters = [char.lower() for char in short if char.isalnum()]
    initials = words[-len(letters) :]
    if [word.strip("\"'\u201c\u201d(")[:1].lower() for word in initials] == letters:
        return " ".join(initials).strip("\"'\u201c\u201d(,")
    at = len(before) - 1
    for number in range(len(letters) - 1, -1, -1):
        while at >= 0 and (
            before[at].lower() != letters[number] or (number == 0 and at > 0 and before[at - 1].isalnum())
        ):
            at -= 1
        if at < 0:
            return None
        at -= 1
    start = before.rfind(" ", 0, at + 2) + 1
    long = before[start:].strip("\"'\u201c\u201d(,")
    num_words = len(long.replace("-", " ").split())
    if len(long) <= len(short) or num_words > 2 * len(short) or short in long.split():
        return None
    return long
