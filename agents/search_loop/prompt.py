"""The conversation of a search loop as prompt segments.

A later turn's prompt begins with the earlier one's, segment by segment, so the engine's prefix cache holds
all but the newest observation. Template text and our notes are trusted; the question, the model's own turns
and passages are not, so their control tokens stay plain characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.sanitise import plain
from agents.search_loop.loop import SearchLoop
from retrieval.types import Passage
from serving.prompt import NOT_IN_DOCUMENTS, TURN_END, TURN_START, Turn
from serving.types import Prompt, Segment, SegmentKind

SEARCH_SYSTEM = (
    "Answer from passages that you search for. Write one call a turn: search: words, open: number or "
    f'answer: text. Cite passages as [n]. If they do not hold the answer, say "{NOT_IN_DOCUMENTS}"'
)
"""System turn of a search loop."""
LAST_TURN = "No calls are left. Write answer: text."
"""Said before the last turn."""
GONE = "This passage was deleted."
"""Stands for a passage that a resumed run cannot load any more."""


def search_prompt(
    question: str, loop: SearchLoop, passages: Mapping[str, Passage], history: Sequence[Turn] = ()
) -> Prompt:
    """Return the prompt of the next turn.

    Args:
        question: The user's words.
        loop: The turns so far.
        passages: Text by chunk id of what was shown.
        history: Earlier turns of the conversation, oldest first.
    """
    segments = _turn("system", "system", SEARCH_SYSTEM, trusted=True)
    for turn in history:
        segments += _turn("history", turn.role, turn.text)
    segments += [*_turn("question", "user", plain(question)), _cue()]
    for index, hop in enumerate(loop.hops):
        segments += [
            Segment("answer", hop.text),
            Segment("answer", TURN_END, trusted=True),
            *observation_segments(loop, index, passages),
        ]
    return Prompt(tuple(segments))


def observation_segments(loop: SearchLoop, index: int, passages: Mapping[str, Passage]) -> list[Segment]:
    """Return what follows the end token of turn `index`: what it is shown, and the cue of the next turn.

    Args:
        loop: A loop of more than `index` turns.
        index: The turn.
        passages: Text by chunk id.
    """
    hop = loop.hops[index]
    numbers = {chunk_id: number for number, chunk_id in enumerate(loop.shown_ids, start=1)}
    limit = loop.limits.max_open_chars if hop.verb == "open" else loop.limits.max_snippet_chars
    segments = [Segment("passage", "\n", trusted=True)]
    for chunk_id in hop.shown:
        segments.append(Segment("passage", f"{TURN_START}tool\n[{numbers[chunk_id]}] ", trusted=True))
        segments.append(_shown(passages.get(chunk_id), chunk_id, limit))
        segments.append(Segment("passage", f"{TURN_END}\n", trusted=True))
    for note in (hop.note, LAST_TURN if index == loop.limits.max_turns - 2 else ""):
        if note:
            segments += _turn("passage", "tool", note, trusted=True)
    return [*segments, _cue()]


def snippet(text: str, max_chars: int) -> str:
    """Return the text, cut at a word's end and marked when it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    kept = text[: max_chars - 2]
    whole = kept.rsplit(None, 1)[0] if any(char.isspace() for char in kept) else kept
    return f"{whole} …"


def _shown(passage: Passage | None, chunk_id: str, limit: int) -> Segment:
    if passage is None:
        return Segment("passage", GONE, trusted=True)
    text = plain(passage.text)
    shown = snippet(text, limit)
    # Only a whole chunk is a unit of KV reuse: a cut one is another text under the same id.
    unit = chunk_id if shown == text else None
    return Segment("passage", f"{plain(passage.document)}\n{shown}", chunk_id=unit)


def _turn(kind: SegmentKind, role: str, text: str, *, trusted: bool = False) -> list[Segment]:
    return [
        Segment(kind, f"{TURN_START}{role}\n", trusted=True),
        Segment(kind, text, trusted=trusted),
        Segment(kind, f"{TURN_END}\n", trusted=True),
    ]


def _cue() -> Segment:
    return Segment("answer", f"{TURN_START}assistant\n", trusted=True)
