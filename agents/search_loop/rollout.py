"""A search loop in token ids: what the model read and wrote, and which of it the model wrote itself.

Turns enter as the ids that were sampled and stay so: they are decoded only to read the call. Observations are
encoded once, when they are shown. So training sees exactly the ids that the policy saw
(https://github.com/huggingface/trl/issues/5224 describes what re-tokenised turns do to log-probabilities).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agents.search_loop.calls import Answer, Open, Refused, Search
from agents.search_loop.limits import SearchLimits
from agents.search_loop.loop import SearchLoop
from agents.search_loop.prompt import observation_segments, search_prompt
from retrieval.types import Passage
from serving.prompt import TextEncoder, encode_prompt
from serving.types import Prompt

Ending = Literal["answered", "exhausted", "tokens"]
"""How a rollout ended: with an answer, with no turns left, or with no room for what would be shown."""


class TurnTokenizer(TextEncoder, Protocol):
    """What a rollout needs of a tokenizer; `serving.tokenizer.ModelTokenizer` has it."""

    turn_end_id: int
    """Id of the token that ends a turn."""
    end_ids: tuple[int, ...]
    """Ids that end a generation."""
    control_ids: frozenset[int]
    """Ids with a meaning of their own."""

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Return the text of token ids."""
        ...


@dataclass(slots=True)
class Rollout:
    """One question on its way to an answer; `take` a turn, `show` it what it searched for, repeat."""

    question: str
    """The user's words."""
    limits: SearchLimits
    """The limits the served graph has."""
    tokenizer: TurnTokenizer
    """Encodes what is shown."""
    max_completion_tokens: int
    """Most tokens after the prompt, turns and observations together."""
    min_turn_tokens: int = 8
    """Room that must be left after an observation for it to be shown."""
    loop: SearchLoop = field(init=False)
    """The turns so far."""
    passages: dict[str, Passage] = field(init=False, default_factory=dict)
    """Everything found so far, by chunk id."""
    prompt_ids: list[int] = field(init=False)
    """What the model reads before its first turn."""
    completion_ids: list[int] = field(init=False, default_factory=list)
    """Everything after it."""
    mask: list[int] = field(init=False, default_factory=list)
    """1 where the model wrote the token, 0 where it was shown; as long as `completion_ids`."""
    answer: str = field(init=False, default="")
    """The answer; empty while there is none."""
    ending: Ending | None = field(init=False, default=None)
    """How it ended; None while it goes on."""
    num_turns: int = field(init=False, default=0)
    """Turns taken, the answer included."""
    num_refused: int = field(init=False, default=0)
    """Of those, turns that got no tool."""
    num_searches: int = field(init=False, default=0)
    """Of those, searches."""
    _asked: tuple[str, Search] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.loop = SearchLoop(self.limits)
        self.prompt_ids = encode_prompt(search_prompt(self.question, self.loop, {}), self.tokenizer)

    @property
    def context_ids(self) -> list[int]:
        """Return what the model reads before its next turn."""
        return self.prompt_ids + self.completion_ids

    @property
    def room(self) -> int:
        """Return how many tokens are left."""
        return self.max_completion_tokens - len(self.completion_ids)

    def take(self, token_ids: Sequence[int]) -> Search | None:
        """Add a turn of the model; return its search, whose result `show` then takes, or None.

        Args:
            token_ids: Ids as sampled, 1 to `room`, the end token included where there is one.

        Raises:
            ValueError: The rollout is over, waits for `show`, or the turn does not fit.
        """
        if self.ending is not None or self._asked is not None:
            raise ValueError("a turn came after the end, or before its search was answered")
        if not 0 < len(token_ids) <= self.room:
            raise ValueError(f"a turn has 1 to {self.room} tokens here, this one has {len(token_ids)}")
        is_cut = token_ids[-1] not in self.tokenizer.end_ids
        body = list(token_ids) if is_cut else list(token_ids[:-1])
        self._append(token_ids, is_model=True)
        self.num_turns += 1
        text = self.tokenizer.decode(body)
        call = self.loop.decide(text, is_cut=is_cut or not self.tokenizer.control_ids.isdisjoint(body))
        match call:
            case Answer(answer):
                self.answer, self.ending = answer, "answered"
            case Search():
                self.num_searches += 1
                self._asked = (text, call)
                return call
            case Open() | Refused():
                self.num_refused += isinstance(call, Refused)
                self.loop = self.loop.after(text, call)
                self._observe(token_ids[-1])
        return None

    def show(self, found: Sequence[Passage]) -> None:
        """Answer the search that `take` returned.

        Args:
            found: Passages, best first; empty when nothing was found.

        Raises:
            ValueError: No search is waiting.
        """
        if self._asked is None:
            raise ValueError("no search waits for its result")
        text, call = self._asked
        self._asked = None
        self.passages |= {passage.chunk_id: passage for passage in found}
        self.loop = self.loop.after(text, call, [passage.chunk_id for passage in found])
        self._observe(self.completion_ids[-1])

    def _observe(self, last_id: int) -> None:
        if self.loop.is_over:
            self.ending = "exhausted"
            return
        segments = observation_segments(self.loop, len(self.loop.hops) - 1, self.passages)
        shown = encode_prompt(Prompt(tuple(segments)), self.tokenizer)
        if last_id != self.tokenizer.turn_end_id:
            # The served prompt closes a turn that was cut, or ended by another token.
            shown.insert(0, self.tokenizer.turn_end_id)
        if len(shown) + self.min_turn_tokens > self.room:
            self.ending = "tokens"
            return
        self._append(shown, is_model=False)

    def _append(self, token_ids: Sequence[int], *, is_model: bool) -> None:
        self.completion_ids += token_ids
        self.mask += [int(is_model)] * len(token_ids)
