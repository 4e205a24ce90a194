"""What people and runs leave to learn from, as token sequences in served prompts.

`CitedAnswer` is one turn over given passages (`rag`); `SearchTrace` is a whole search loop (`multi_hop`),
replayed through the loop's own code, so that a trace which serving would not have produced is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.search_loop import Rollout, SearchLimits
from retrieval.types import Passage
from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage, Turn, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.errors import DataError
from training.preference.sequences import MaskedSequence


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """A question, the passages shown for it, and an answer."""

    question: str
    """The user's words."""
    passages: tuple[PromptPassage, ...]
    """Shown as [1]..[n] in this order."""
    answer: str
    """With its [n] marks; `NOT_IN_DOCUMENTS` where the passages hold none."""
    history: tuple[Turn, ...] = ()
    """Earlier turns of the conversation, oldest first."""

    def prompt_ids(self, tokenizer: ModelTokenizer) -> list[int]:
        """Return the served prompt."""
        return tokenizer.encode_prompt(rag_prompt(self.question, self.passages, self.history))

    def answer_ids(self, tokenizer: ModelTokenizer) -> list[int]:
        """Return the answer and the end of its turn.

        An answer begins with a space, as in pre-training: its first word is then the token it is in the
        passage.
        """
        text = self.answer if self.answer == NOT_IN_DOCUMENTS else f" {self.answer.strip()}"
        return [*tokenizer.encode(text, trusted=False), tokenizer.turn_end_id]

    def sequence(self, tokenizer: ModelTokenizer) -> MaskedSequence:
        """Return prompt and answer, the answer to be learned."""
        prompt, answer = self.prompt_ids(tokenizer), self.answer_ids(tokenizer)
        return MaskedSequence((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)))


@dataclass(frozen=True, slots=True)
class TraceTurn:
    """One turn of a recorded search loop."""

    text: str
    """What the model wrote."""
    found: tuple[Passage, ...] = ()
    """For a search, what it found, best first."""


@dataclass(frozen=True, slots=True)
class SearchTrace:
    """A recorded search loop that ended with an answer."""

    question: str
    """The user's words."""
    turns: tuple[TraceTurn, ...]
    """Oldest first; the last is the answer."""

    def replay(self, tokenizer: ModelTokenizer, limits: SearchLimits, max_tokens: int) -> Rollout:
        """Return the loop in token ids.

        Args:
            tokenizer: The policy's.
            limits: Limits the loop is trained and served within.
            max_tokens: Room for everything after the prompt.

        Raises:
            DataError: The turns do not lead through the loop to an answer within its limits.
        """
        rollout = Rollout(self.question, limits, tokenizer, max_tokens)
        for number, turn in enumerate(self.turns, start=1):
            ids = [*tokenizer.encode(turn.text, trusted=False), tokenizer.turn_end_id]
            if rollout.ending is not None or len(ids) > rollout.room:
                break
            if rollout.take(ids) is not None:
                rollout.show(turn.found)
            if rollout.ending == "answered" and number == len(self.turns):
                return rollout
        raise DataError(
            f"the trace of {self.question[:60]!r} does not end in an answer within {limits.max_turns} turns "
            f"and {max_tokens} tokens; leave it out or raise the limits"
        )

    def sequence(self, tokenizer: ModelTokenizer, limits: SearchLimits, max_tokens: int) -> MaskedSequence:
        """Return the loop with the model's own well-formed turns to be learned; see `replay`."""
        return rollout_sequence(self.replay(tokenizer, limits, max_tokens))


def rollout_sequence(rollout: Rollout) -> MaskedSequence:
    """Return a rollout's tokens, those the model wrote to be learned."""
    prompt = rollout.prompt_ids
    return MaskedSequence(
        (*prompt, *rollout.completion_ids), (*[False] * len(prompt), *(bool(mine) for mine in rollout.mask))
    )
