"""Prompts as ordered segments, and their exact encoding.

The template is ChatML with one `tool` turn per passage. The passage's number stands in template text,
outside the passage's own segment: the tokens of a passage are therefore the same wherever it appears,
which is what KV reuse needs, and control tokens inside a passage stay plain characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

from serving.types import Prompt, Segment, SegmentKind

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Every token with a meaning of its own; a tokenizer served by Graft defines all three."""

NOT_IN_DOCUMENTS = "Not in the documents."
"""What a generator says when the passages do not hold the answer."""

RAG_SYSTEM = (
    f'Answer from the passages and cite them as [n]. If they do not hold the answer, say "{NOT_IN_DOCUMENTS}"'
)
"""System turn of every answer from passages; part of a release's prompt hash."""

CHAT_SYSTEM = "You are a helpful assistant."
"""System turn of a plain chat with no passages."""

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    """Who speaks."""
    text: str
    """What was said."""


@dataclass(frozen=True, slots=True)
class PromptPassage:
    """A passage as it enters a prompt."""

    chunk_id: str
    """The chunk it shows."""
    title: str
    """Name of its document, shown on the passage's first line."""
    text: str
    """The chunk's text."""


class TextEncoder(Protocol):
    """The two ways a tokenizer is used here; `serving.tokenizer` implements it."""

    def encode(self, text: str, *, trusted: bool) -> list[int]:
        """Return token ids; control tokens keep their meaning only in trusted text."""
        ...


def prompt_hash() -> str:
    """Return 16 hex digits over the templates, which releases and trained models are bound to."""
    templates = "\n".join((RAG_SYSTEM, CHAT_SYSTEM, TURN_START, TURN_END))
    return hashlib.sha256(templates.encode()).hexdigest()[:16]


def _template(kind: SegmentKind, text: str) -> Segment:
    return Segment(kind, text, trusted=True)


def _turn(kind: SegmentKind, role: Role, text: str, *, trusted: bool = False) -> list[Segment]:
    return [
        _template(kind, f"{TURN_START}{role}\n"),
        Segment(kind, text, trusted=trusted),
        _template(kind, f"{TURN_END}\n"),
    ]


def _answer_cue() -> Segment:
    return _template("answer", f"{TURN_START}assistant\n")


def rag_prompt(question: str, passages: Sequence[PromptPassage], history: Sequence[Turn] = ()) -> Prompt:
    """Return the prompt that asks for a cited answer from passages.

    Args:
        question: The user's words.
        passages: Shown as [1]..[n] in this order.
        history: Earlier turns of the conversation, oldest first.
    """
    segments = _turn("system", "system", RAG_SYSTEM, trusted=True)
    for number, passage in enumerate(passages, start=1):
        segments += [
            _template("passage", f"{TURN_START}tool\n[{number}] "),
            Segment("passage", f"{passage.title}\n{passage.text}", chunk_id=passage.chunk_id),
            _template("passage", f"{TURN_END}\n"),
        ]
    for turn in history:
        segments += _turn("history", turn.role, turn.text)
    segments += [*_turn("question", "user", question), _answer_cue()]
    return Prompt(tuple(segments))


def chat_prompt(turns: Sequence[Turn]) -> Prompt:
    """Return the prompt of a plain conversation; a default system turn is added when none is given."""
    has_system = bool(turns) and turns[0].role == "system"
    segments = [] if has_system else _turn("system", "system", CHAT_SYSTEM, trusted=True)
    for turn in turns:
        segments += _turn("system" if turn.role == "system" else "history", turn.role, turn.text)
    return Prompt((*segments, _answer_cue()))


def encode_segments(prompt: Prompt, encoder: TextEncoder) -> list[list[int]]:
    """Return the token ids of each segment of a prompt.

    Encoding per segment makes equal segments equal token runs in every prompt and keeps control
    tokens of untrusted text inert.
    """
    return [encoder.encode(segment.text, trusted=segment.trusted) for segment in prompt.segments]


def encode_prompt(prompt: Prompt, encoder: TextEncoder) -> list[int]:
    """Return the token ids of a prompt: those of its segments, one after the other."""
    return list(chain.from_iterable(encode_segments(prompt, encoder)))
