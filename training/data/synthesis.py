"""Questions from a library without labels, so that whoever has documents alone can train.

Rule-made cloze and wh-questions (`training.pretraining.text_tasks`), questions a language model writes, and
the filter that keeps those whose passage a retriever finds again.

Sources: round-trip consistency is Alberti et al. 2019 (https://arxiv.org/abs/1906.05416), for retrieval
Promptagator (Dai et al. 2022, https://arxiv.org/abs/2209.11755, which keeps a question when its passage is
first).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from training.data.answers import holds_answer
from training.data.library import with_questions
from training.data.ranking import PassageRanker
from training.data.reader import CountedSet
from training.data.written_questions import QuestionWriter, made_question
from training.errors import ConfigError
from training.pretraining.text_tasks import Noise, make_question
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

_TRIES_PER_QUESTION = 8


@dataclass(frozen=True, slots=True)
class SynthesisConfig:
    """How questions are made by rule, and which are kept."""

    num_per_passage: int = 2
    """Questions made by rule of each passage, 0 for none; short passages give fewer."""
    cloze_share: float = 0.3
    """Share of them left as a sentence with a blank; the rest become wh-questions."""
    drop_words: float = 0.2
    """Most that the chance of dropping a word of a wh-question may be."""
    search_style: float = 0.3
    """Share in lower case without a question mark, as people type into a search box."""
    round_trip_k: int = 10
    """A question is kept when its passage is among this many first."""
    seed: int = 0
    """Chooses the questions."""

    def __post_init__(self) -> None:
        if self.num_per_passage < 0 or self.round_trip_k < 1:
            raise ConfigError(
                f"num_per_passage must be >= 0 and round_trip_k >= 1, got {self.num_per_passage} and "
                f"{self.round_trip_k}"
            )
        for name in ("cloze_share", "drop_words", "search_style"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def cloze_questions(
    passages: Sequence[TrainingPassage], config: SynthesisConfig
) -> tuple[TrainingQuestion, ...]:
    """Return questions about names and numbers of the passages' sentences.

    What is made of a passage follows from the seed and that passage alone, so a library that grows keeps its
    questions.
    """
    noise = Noise(config.cloze_share, config.drop_words, config.search_style)
    return tuple(question for passage in passages for question in _questions_of(passage, config, noise))


def _questions_of(passage: TrainingPassage, config: SynthesisConfig, noise: Noise) -> list[TrainingQuestion]:
    digest = hashlib.sha256(f"{config.seed}\0{passage.passage_id}\0{passage.text}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    made: dict[str, TrainingQuestion] = {}
    for _ in range(_TRIES_PER_QUESTION * config.num_per_passage):
        if len(made) == config.num_per_passage:
            break
        drawn = make_question(rng, passage.text, noise)
        if drawn is None:
            continue
        # A number's span may end in the comma after it.
        asked, answer = drawn[0], drawn[1].strip(" ,;:")
        if not _is_name_or_number(answer) or holds_answer(asked, (answer,)):
            continue
        if any(answer == one.answers[0] for one in made.values()):
            continue
        question = made_question("cloze", passage, asked, answer)
        made[question.question_id] = question
    return list(made.values())


def _is_name_or_number(answer: str) -> bool:
    return any(char.isdigit() for char in answer) or any(word[0].isupper() for word in answer.split())


async def round_trip(
    questions: Sequence[TrainingQuestion], ranker: PassageRanker, *, k: int
) -> tuple[TrainingQuestion, ...]:
    """Return the questions for which one of their positive passages is among the first `k` found."""
    ranked = await ranker.rank([question.text for question in questions], k)
    return tuple(
        question
        for question, found in zip(questions, ranked, strict=True)
        if any(one.passage_id in question.positive_ids for one in found[:k])
    )


async def synthesised(
    library: TrainingSet,
    ranker: PassageRanker,
    config: SynthesisConfig,
    *,
    writer: QuestionWriter | None = None,
) -> CountedSet:
    """Return the library with questions made from it that lead back to their passages.

    Args:
        library: Passages; questions it has already stay as they are.
        ranker: Finds passages by a question's words.
        config: How questions are made by rule.
        writer: Writes more of them with a language model; None for rules alone.

    Raises:
        DataError: Not one question came out.
    """
    left_out: Counter[str] = Counter()
    made = list(cloze_questions(library.passages, config))
    if writer is not None:
        written, left_out = await writer.write(library.passages)
        made += written
    kept = await round_trip(made, ranker, k=config.round_trip_k)
    left_out["questions whose passage is not found again"] = len(made) - len(kept)
    counts = MappingProxyType({reason: count for reason, count in left_out.items() if count})
    return CountedSet(with_questions(library, (*library.questions, *kept), library.name), counts)
