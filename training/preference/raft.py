"""RAFT-style examples: the passage that answers among retrieved ones that do not, or left out altogether.

Source: Zhang et al. 2024 (https://arxiv.org/abs/2403.10131). Two differences, both on purpose: distractors
are what retrieval found for the question, not random chunks; and where the oracle is left out the answer
taught is the refusal that serving promises, not the answer recited from memory (`absent="recite"` gives the
paper's).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage
from training.data.answers import AnswerText
from training.errors import ConfigError, DataError
from training.preference.examples import CitedAnswer
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """How examples are composed."""

    num_passages: int = 4
    """Passages shown, 1 to 50."""
    oracle_drop: float = 0.2
    """Share of questions whose answering passages are left out (RAFT's 1 - p), in [0, 1]."""
    absent: Literal["refuse", "recite"] = "refuse"
    """What is taught where they are: that the documents do not hold it, or the answer without a mark."""
    seed: int = 0
    """Which questions lose their oracle, and the order of passages."""

    def __post_init__(self) -> None:
        """Refuse what cannot be; raises ConfigError."""
        if not 1 <= self.num_passages <= 50:
            raise ConfigError(f"raft.num_passages must be from 1 to 50, got {self.num_passages}")
        if not 0.0 <= self.oracle_drop <= 1.0:
            raise ConfigError(f"raft.oracle_drop must be from 0 to 1, got {self.oracle_drop}")


def raft_examples(
    data: TrainingSet, retrieved: Mapping[str, Sequence[str]], config: RaftConfig
) -> list[CitedAnswer]:
    """Return one example for each question with an answering passage, or known to have none.

    A passage that holds an accepted answer is never a distractor, whatever its label: it would teach to
    refuse what is there. Draws follow from the seed and the question's id alone, so adding questions changes
    no other example.

    Args:
        data: Questions and passages.
        retrieved: Passage ids by question id, best first, from the retriever the model will be served with.
        config: How examples are composed.

    Raises:
        DataError: A question's passages are not in the set, or no question can be used.
    """
    passages = {passage.passage_id: passage for passage in data.passages}
    examples = [
        example
        for question in data.questions
        if (example := _example(question, passages, retrieved.get(question.question_id, ()), config))
    ]
    if not examples:
        raise DataError(
            f"no question of {data.name!r} has both an answer and a passage that holds it; label passages, "
            "or read a set that does"
        )
    return examples


def _example(
    question: TrainingQuestion,
    passages: Mapping[str, TrainingPassage],
    retrieved: Sequence[str],
    config: RaftConfig,
) -> CitedAnswer | None:
    unknown = [one for one in (*question.positive_ids, *retrieved) if one not in passages]
    if unknown:
        raise DataError(
            f"question {question.question_id!r} names passage {unknown[0]!r}, which the set lacks"
        )
    rng = random.Random(f"{config.seed}:{question.question_id}")
    oracle = _oracle(question, passages)
    if oracle is None and not question.is_unanswerable:
        return None
    is_absent = oracle is None or rng.random() < config.oracle_drop
    distractors = [
        one
        for one in dict.fromkeys((*question.negative_ids, *retrieved))
        if one not in question.positive_ids
        and not AnswerText(passages[one].full_text).holds(question.answers)
    ]
    shown = distractors[: config.num_passages - (not is_absent)]
    if not is_absent and oracle is not None:
        shown.append(oracle)
    rng.shuffle(shown)
    if is_absent and (config.absent == "refuse" or oracle is None):
        answer = NOT_IN_DOCUMENTS
    elif is_absent:
        answer = question.answers[0]
    else:
        answer = f"{question.answers[0]} [{shown.index(oracle) + 1}]"  # pyright: ignore[reportArgumentType]
    return CitedAnswer(question.text, tuple(_prompt_passage(passages[one]) for one in shown), answer)


def _oracle(question: TrainingQuestion, passages: Mapping[str, TrainingPassage]) -> str | None:
    """Return the first positive passage that holds an accepted answer."""
    if question.is_unanswerable:
        return None
    return next(
        (one for one in question.positive_ids if AnswerText(passages[one].full_text).holds(question.answers)),
        None,
    )


def _prompt_passage(passage: TrainingPassage) -> PromptPassage:
    return PromptPassage(passage.passage_id, passage.title, passage.text)
