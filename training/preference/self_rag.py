"""Self-RAG data: answers with reflection tokens that a critic put in, ready for supervised training.

Form of a segment, after Asai et al. 2023 (https://arxiv.org/abs/2310.11511, section 3.2):

    [Retrieval]<paragraph>PASSAGE</paragraph>[Relevant]SENTENCE[Fully supported]
    [No Retrieval]SENTENCE

and `[Utility:n]` after the last. Passages are read, not learned; everything else is. The mask follows the
pieces a sequence is made of. (The published script looks for `</paragraph>` and does not stop at the first
one it finds, so that with several passages it leaves out the sentences between them too.)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.prompt import PromptPassage, Turn, chat_prompt
from serving.tokenizer import ModelTokenizer
from serving.types import GenerateRequest, Generator, Sampling
from training.errors import ConfigError, DataError
from training.preference.sequences import MaskedSequence

Support = Literal["fully", "partially", "no"]
"""How far a passage says what a sentence says."""

RETRIEVE, NO_RETRIEVE = "[Retrieval]", "[No Retrieval]"
RELEVANT, IRRELEVANT = "[Relevant]", "[Irrelevant]"
PASSAGE_START, PASSAGE_END = "<paragraph>", "</paragraph>"
SUPPORT: dict[Support, str] = {
    "fully": "[Fully supported]",
    "partially": "[Partially supported]",
    "no": "[No support / Contradictory]",
}
UTILITY = tuple(f"[Utility:{n}]" for n in range(1, 6))
REFLECTION_TOKENS = (
    RETRIEVE, NO_RETRIEVE, RELEVANT, IRRELEVANT, PASSAGE_START, PASSAGE_END, *SUPPORT.values(), *UTILITY
)  # fmt: skip
"""Every token a model must define to be trained on this."""

_ASK_RELEVANT = "Does the passage help to answer the question? Say yes or no."
_ASK_SUPPORT = "Does the passage say what the sentence says? Say fully, partially or no."
_ASK_UTILITY = "How useful is the answer to the question? Say a number from 1 (useless) to 5 (perfect)."
MAX_GRADE_TOKENS = 8
CRITIC_PRIORITY = 20
"""Below people and graders: data creation is a batch job."""


@dataclass(frozen=True, slots=True)
class AnswerSegment:
    """A sentence of an answer and the passage it was written from."""

    sentence: str
    """Not empty."""
    passage: PromptPassage | None = None
    """None where it was written without one."""


@dataclass(frozen=True, slots=True)
class GradedSegment:
    """A segment with the critic's grades."""

    segment: AnswerSegment
    """What was graded."""
    is_relevant: bool = False
    """Whether its passage helps; not said where there is none."""
    support: Support = "no"
    """How far its passage says it; not said where there is none or it does not help."""


@dataclass(frozen=True, slots=True)
class ReflectedAnswer:
    """An answer with every grade it is to be trained with."""

    question: str
    """The user's words."""
    segments: tuple[GradedSegment, ...]
    """In order."""
    utility: int
    """1 to 5."""

    def sequence(self, tokenizer: ModelTokenizer) -> MaskedSequence:
        """Return the prompt and the answer in its form, everything but prompt and passages to be learned.

        Raises:
            ConfigError: The tokenizer does not define a reflection token.
        """
        check_reflection_tokens(tokenizer)
        ids = tokenizer.encode_prompt(chat_prompt([Turn("user", self.question)]))
        mask = [False] * len(ids)
        for text, is_token, is_target in self._pieces():
            piece = tokenizer.encode(text, trusted=is_token)
            ids += piece
            mask += [is_target] * len(piece)
        return MaskedSequence((*ids, tokenizer.turn_end_id), (*mask, True))

    def _pieces(self) -> list[tuple[str, bool, bool]]:
        """Return (text, whether it is a reflection token, whether it is learned) in order."""
        pieces: list[tuple[str, bool, bool]] = []
        for graded in self.segments:
            passage = graded.segment.passage
            if passage is None:
                pieces += [(NO_RETRIEVE, True, True), (graded.segment.sentence, False, True)]
                continue
            pieces += [
                (RETRIEVE, True, True),
                (PASSAGE_START, True, False),
                (f"{passage.title}\n{passage.text}", False, False),
                (PASSAGE_END, True, False),
                (RELEVANT if graded.is_relevant else IRRELEVANT, True, True),
                (graded.segment.sentence, False, True),
            ]
            if graded.is_relevant:
                pieces.append((SUPPORT[graded.support], True, True))
        return [*pieces, (UTILITY[self.utility - 1], True, True)]


def check_reflection_tokens(tokenizer: ModelTokenizer) -> None:
    """Check that each reflection token is one id of the tokenizer.

    Raises:
        ConfigError: One is not; the message says how to add them.
    """
    missing = [
        token
        for token in REFLECTION_TOKENS
        if len(ids := tokenizer.encode(token, trusted=True)) != 1 or ids[0] not in tokenizer.control_ids
    ]
    if missing:
        raise ConfigError(
            f"the tokenizer does not define {', '.join(missing)}; add them with "
            "training.preference.self_rag.add_reflection_tokens, then train"
        )


def add_reflection_tokens(source: Path, out: Path) -> Path:
    """Write a copy of a model whose tokenizer defines the reflection tokens, and return its folder.

    Their embeddings start at the mean of the others, so that training begins from no opinion.

    Args:
        source: Folder of a causal language model.
        out: New folder.

    Raises:
        ConfigError: The model cannot be loaded.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} cannot be loaded: {error}") from error
    num_before = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_special_tokens({"additional_special_tokens": list(REFLECTION_TOKENS)})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in {
        id(one): one for one in (model.get_input_embeddings(), model.get_output_embeddings())
    }.values():
        layer.weight.data[num_before:] = layer.weight.data[:num_before].mean(dim=0)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


class Critic:
    """Grades with a language model; a grade that cannot be read is None, never a default."""

    def __init__(self, generator: Generator, *, num_parallel: int = 16) -> None:
        """Remember whom to ask, and how many questions at once."""
        self._generator = generator
        self._slots = asyncio.Semaphore(num_parallel)

    async def is_relevant(self, question: str, passage: PromptPassage) -> bool | None:
        """Return whether a passage helps to answer a question."""
        said = await self._said(_ASK_RELEVANT, Question=question, Passage=passage.text)
        return {"yes": True, "no": False}.get(_word(said))

    async def support(self, passage: PromptPassage, sentence: str) -> Support | None:
        """Return how far a passage says what a sentence says."""
        word = _word(await self._said(_ASK_SUPPORT, Passage=passage.text, Sentence=sentence))
        return word if word in SUPPORT else None

    async def utility(self, question: str, answer: str) -> int | None:
        """Return how useful an answer is, 1 to 5."""
        said = await self._said(_ASK_UTILITY, Question=question, Answer=answer)
        found = re.match(r"\W*([1-5])\b", said)
        return int(found.group(1)) if found else None

    async def _said(self, instruction: str, **parts: str) -> str:
        shown = "\n".join(f"{name}: {text}" for name, text in parts.items())
        request = GenerateRequest(
            chat_prompt([Turn("system", instruction), Turn("user", shown)]),
            Sampling(max_tokens=MAX_GRADE_TOKENS),
            priority=CRITIC_PRIORITY,
        )
        async with self._slots:
            stream: Any = self._generator.generate(request)
            async with aclosing(stream):
                return "".join([chunk.text async for chunk in stream])


def _word(said: str) -> Any:
    found = re.match(r"\W*(\w+)", said)
    return found.group(1).lower() if found else ""


@dataclass(frozen=True, slots=True)
class ReflectionData:
    """What a critic made of answers."""

    answers: tuple[ReflectedAnswer, ...]
    """Those graded in full."""
    num_unread: int
    """Answers left out since a grade could not be read."""


async def reflect(answers: Sequence[tuple[str, Sequence[AnswerSegment]]], critic: Critic) -> ReflectionData:
    """Return answers with the critic's grades.

    Args:
        answers: Each question with the segments of an answer, at least one.
        critic: Who grades.

    Raises:
        DataError: An answer has no segment, or the critic's grades could not be read for a single one.
        ServingError: The generator failed.
    """
    for question, segments in answers:
        if not segments:
            raise DataError(f"the answer to {question[:60]!r} has no segment")
    graded = await asyncio.gather(*(_reflected(question, segments, critic) for question, segments in answers))
    kept = tuple(one for one in graded if one is not None)
    if answers and not kept:
        raise DataError(
            f"no grade of {len(answers)} answers could be read: the critic does not follow its instructions; "
            "use a larger model"
        )
    return ReflectionData(kept, len(answers) - len(kept))


async def _reflected(
    question: str, segments: Sequence[AnswerSegment], critic: Critic
) -> ReflectedAnswer | None:
    graded = await asyncio.gather(*(_graded(question, segment, critic) for segment in segments))
    utility = await critic.utility(question, " ".join(segment.sentence for segment in segments))
    whole = [one for one in graded if one is not None]
    if utility is None or len(whole) < len(graded):
        return None
    return ReflectedAnswer(question, tuple(whole), utility)


async def _graded(question: str, segment: AnswerSegment, critic: Critic) -> GradedSegment | None:
    if segment.passage is None:
        return GradedSegment(segment)
    is_relevant = await critic.is_relevant(question, segment.passage)
    if not is_relevant:
        return None if is_relevant is None else GradedSegment(segment)
    support = await critic.support(segment.passage, segment.sentence)
    return None if support is None else GradedSegment(segment, is_relevant=True, support=support)
