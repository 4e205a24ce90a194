"""What a rollout earns: the answer, the format, evidence that was surfaced, less what it searched.

Source: Search-R1 (https://arxiv.org/abs/2503.09516) rewards exact match, and in its third version a format
and a retrieval part. The format is judged by the loop's own parser, not by tags in the text: there, a tag in
the prompt counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agents.search_loop import Rollout
from serving.prompt import NOT_IN_DOCUMENTS
from training.data.answers import AnswerText, exact_match, f1
from training.errors import ConfigError
from training.types import TrainingQuestion

PARTS = ("answer", "format", "evidence", "searches")
"""Names of the parts, in the order of `RewardWeights.weights`."""

_MARK = re.compile(r"\s*\[\d+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """How much each part counts."""

    match: Literal["em", "f1"] = "em"
    """How an answer is compared with the accepted ones."""
    answer: float = 1.0
    """Of the comparison, in [0, 1]."""
    format: float = 0.2
    """Of a rollout that ended with an answer and had no turn refused."""
    evidence: float = 0.2
    """Of a passage shown that holds an accepted answer or is labelled as holding it."""
    searches: float = 0.0
    """Taken off for each search after the first."""

    def __post_init__(self) -> None:
        """Refuse weights that reward nothing or the wrong thing; raises ConfigError."""
        if not self.answer > 0 or min(self.format, self.evidence, self.searches) < 0:
            raise ConfigError(f"reward weights must not be negative, and answer must be above 0, got {self}")

    @property
    def weights(self) -> list[float]:
        """Return the weight of each of `PARTS`."""
        return [self.answer, self.format, self.evidence, -self.searches]


def reward_parts(
    rollout: Rollout, question: TrainingQuestion, match: Literal["em", "f1"]
) -> tuple[float, ...]:
    """Return each of `PARTS` before weights.

    Args:
        rollout: Ended.
        question: What was asked; one known to be unanswerable accepts the refusal.
        match: See `RewardWeights.match`.
    """
    accepted = _accepted(question)
    said = _MARK.sub("", rollout.answer).strip()
    compare = exact_match if match == "em" else f1
    answer = compare(said, accepted) if rollout.ending == "answered" else 0.0
    is_formed = rollout.ending == "answered" and rollout.num_refused == 0
    shown = [rollout.passages[chunk_id] for chunk_id in rollout.loop.shown_ids]
    is_surfaced = any(
        passage.chunk_id in question.positive_ids
        or AnswerText(f"{passage.document}\n{passage.text}").holds(question.answers)
        for passage in shown
    )
    return answer, float(is_formed), float(is_surfaced), float(max(0, rollout.num_searches - 1))


def _accepted(question: TrainingQuestion) -> Sequence[str]:
    return [NOT_IN_DOCUMENTS] if question.is_unanswerable else question.answers
