"""The state of a search loop and its transitions: pure values, small enough for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agents.search_loop.calls import Answer, Call, Open, Refused, Search, parse_call
from agents.search_loop.limits import SearchLimits

NOTHING_FOUND = "Nothing was found."
NOTHING_NEW = "Nothing new was found."
REPEATED = "This was searched already. Search for other words, or answer."
NO_SUCH_PASSAGE = "There is no passage of that number."
OPENED_ALREADY = "This passage is shown in full already."
NO_CALLS_LEFT = "No calls are left."


@dataclass(frozen=True, slots=True)
class Hop:
    """One turn of the model that was no answer, and what it was shown for it."""

    text: str
    """The turn as written, without control tokens."""
    verb: Literal["search", "open", "refused"]
    """What was done."""
    shown: tuple[str, ...] = ()
    """Chunks shown, in order; their text is looked up when a prompt is made."""
    note: str = ""
    """What was said when nothing could be shown."""
    query: str = ""
    """What was searched for."""
    is_malformed: bool = False
    """Whether the turn was no call at all."""


@dataclass(frozen=True, slots=True)
class SearchLoop:
    """Where a loop stands. `decide` reads a turn, `after` is the loop once the turn was followed."""

    limits: SearchLimits
    """How far it may go."""
    hops: tuple[Hop, ...] = ()
    """Turns so far, oldest first."""

    @property
    def shown_ids(self) -> tuple[str, ...]:
        """Return the chunks found so far; the number of a passage is its place here, from 1."""
        return tuple(chunk_id for hop in self.hops if hop.verb == "search" for chunk_id in hop.shown)

    @property
    def is_last_turn(self) -> bool:
        """Return whether the next turn must be the answer."""
        return len(self.hops) == self.limits.max_turns - 1

    @property
    def is_over(self) -> bool:
        """Return whether no turn is left, or too many were no call."""
        num_malformed = sum(hop.is_malformed for hop in self.hops)
        return len(self.hops) >= self.limits.max_turns or num_malformed >= self.limits.max_malformed

    def decide(self, text: str, *, is_cut: bool = False) -> Call:
        """Return what a turn asks for, refused where it cannot be followed now.

        Args:
            text: What the model wrote, without control tokens.
            is_cut: Whether it reached the token limit of a turn.

        Raises:
            ValueError: The loop is over.
        """
        if self.is_over:
            raise ValueError(f"this loop ended after {len(self.hops)} turns; it reads no more")
        call = parse_call(text, is_cut=is_cut)
        if self.is_last_turn and isinstance(call, Search | Open):
            return Refused(NO_CALLS_LEFT)
        match call:
            case Search(query):
                query = " ".join(query.split())[: self.limits.max_query_chars]
                known = {hop.query.casefold() for hop in self.hops if hop.verb == "search"}
                return Refused(REPEATED) if query.casefold() in known else Search(query)
            case Open(number):
                if not 1 <= number <= len(self.shown_ids):
                    return Refused(NO_SUCH_PASSAGE)
                chunk_id = self.shown_ids[number - 1]
                opened = any(hop.verb == "open" and chunk_id in hop.shown for hop in self.hops)
                return Refused(OPENED_ALREADY) if opened else call
            case Answer() | Refused():
                return call

    def after(self, text: str, call: Search | Open | Refused, found: Sequence[str] = ()) -> SearchLoop:
        """Return the loop with one more turn.

        Args:
            text: The turn.
            call: What `decide` made of it.
            found: For a search, the chunks it found, best first.
        """
        match call:
            case Search(query):
                new = tuple(one for one in found if one not in self.shown_ids)[: self.limits.k_passages]
                note = "" if new else NOTHING_NEW if found else NOTHING_FOUND
                hop = Hop(text, "search", new, note, query)
            case Open(number):
                hop = Hop(text, "open", (self.shown_ids[number - 1],))
            case Refused(note, is_malformed):
                hop = Hop(text, "refused", (), note, is_malformed=is_malformed)
        return replace(self, hops=(*self.hops, hop))
