"""What a model's turn asks for: `search: words`, `open: number` or `answer: text`, one a turn.

A turn is what the model wrote between two control tokens. Documents are encoded without control tokens, so no
document can open a turn, and only turns are read as calls: a passage that says `search: ...` is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CALL = re.compile(r"\s*(search|open|answer)[ \t]*:\s*(.*?)\s*\Z", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\[?(\d{1,4})\]?\Z")

NO_CALL = "No call was read. Write one of: search: words, open: number, answer: text."
"""What the model is told after a turn that is no call."""
CUT = "The call was cut off. Write a shorter one."
"""What the model is told after a call that reached the token limit."""


@dataclass(frozen=True, slots=True)
class Search:
    """Look for passages."""

    query: str
    """One line, not empty."""


@dataclass(frozen=True, slots=True)
class Open:
    """Show a passage that was found in full."""

    number: int
    """The [n] it was shown under, from 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """End the loop."""

    text: str
    """The answer, not empty."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A turn that gets no tool: no call at all, or one that cannot be followed now."""

    note: str
    """What the model is told; our words only, never a document's or the model's."""
    is_malformed: bool = False
    """Whether it is no call at all."""


Call = Search | Open | Answer | Refused
"""Everything a turn can be."""


def parse_call(text: str, *, is_cut: bool = False) -> Call:
    """Return the call of a turn.

    Args:
        text: The turn, without control tokens.
        is_cut: Whether the turn reached its token limit; an answer then still counts, a tool call does not.
    """
    match = _CALL.match(text)
    if match is None:
        return Refused(NO_CALL, is_malformed=True)
    verb, body = match.group(1).lower(), match.group(2)
    if verb == "answer" and body:
        return Answer(body)
    if is_cut:
        return Refused(CUT, is_malformed=True)
    if verb == "search" and body and "\n" not in body:
        return Search(body)
    if verb == "open" and (number := _NUMBER.match(body)):
        return Open(int(number.group(1)))
    return Refused(NO_CALL, is_malformed=True)


def render_call(call: Search | Open | Answer) -> str:
    """Return the turn that asks for a call, as training data writes it."""
    match call:
        case Search(query):
            return f"search: {query}"
        case Open(number):
            return f"open: {number}"
        case Answer(text):
            return f"answer: {text}"
