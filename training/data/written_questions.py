"""Questions that a language model writes about passages, each with an answer that its passage holds."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from serving.errors import Overloaded, PromptTooLong
from serving.prompt import TURN_END, TURN_START
from serving.types import GeneratedChunk, GenerateRequest, Generator, Prompt, Sampling, Segment
from training.data.answers import holds_answer
from training.data.draft import content_id
from training.types import TrainingPassage, TrainingQuestion

SYSTEM = "You write exam questions. Each can be answered from the passage alone, in words copied from it."
"""System turn of every request."""
_PAIR = re.compile(r"Question:\s*(?P<question>[^\n]+?)\s*\n\s*Answer:\s*(?P<answer>[^\n]+)")
_BATCH_PRIORITY = 20
_MAX_ATTEMPTS = 50


def question_prompt(passage: TrainingPassage, num_questions: int) -> Prompt:
    """Return the prompt that asks for questions about a passage.

    The passage is an untrusted segment as in `serving.prompt.rag_prompt`: nothing in it can forge a turn.
    """
    task = (
        f"Write {num_questions} different questions about the passage, each on two lines:\n"
        "Question: a question that makes sense without seeing the passage\n"
        "Answer: a few words copied from the passage"
    )
    return Prompt(
        (
            Segment("system", f"{TURN_START}system\n{SYSTEM}{TURN_END}\n", trusted=True),
            Segment("passage", f"{TURN_START}tool\n[1] ", trusted=True),
            Segment("passage", passage.full_text, chunk_id=passage.passage_id),
            Segment("passage", f"{TURN_END}\n", trusted=True),
            Segment("question", f"{TURN_START}user\n{task}{TURN_END}\n{TURN_START}assistant\n", trusted=True),
        )
    )


class QuestionWriter:
    """Asks a generator for questions, many passages at a time, behind everyone who waits for an answer."""

    def __init__(
        self,
        generator: Generator,
        *,
        num_per_passage: int = 2,
        sampling: Sampling | None = None,
        num_concurrent: int = 8,
        tenant: str = "default",
    ) -> None:
        """Remember whom to ask and for how much.

        Args:
            generator: Writes the questions; requests run at the priority of batch jobs.
            num_per_passage: Questions asked for of each passage, 1 or more.
            sampling: How tokens are drawn; None takes 60 tokens a question at temperature 0.
            num_concurrent: Requests under way at once.
            tenant: Whose passages they are.
        """
        self._generator = generator
        self._num_per_passage = num_per_passage
        self._sampling = sampling or Sampling(max_tokens=60 * num_per_passage)
        self._num_concurrent = num_concurrent
        self._tenant = tenant

    async def write(
        self, passages: Sequence[TrainingPassage]
    ) -> tuple[tuple[TrainingQuestion, ...], Counter[str]]:
        """Return the usable questions in the order of the passages, and what was left out by reason.

        Raises:
            GeneratorUnavailable: The engine died.
            Overloaded: It had no room for a request after many tries.
        """
        slots = asyncio.Semaphore(self._num_concurrent)

        async def ask(passage: TrainingPassage) -> tuple[list[TrainingQuestion], Counter[str]]:
            async with slots:
                return await self._ask(passage)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(passage)) for passage in passages]
        questions: list[TrainingQuestion] = []
        left_out: Counter[str] = Counter()
        for task in tasks:
            written, refused = task.result()
            questions += written
            left_out += refused
        return tuple(questions), left_out

    async def _ask(self, passage: TrainingPassage) -> tuple[list[TrainingQuestion], Counter[str]]:
        prompt = question_prompt(passage, self._num_per_passage)
        request = GenerateRequest(prompt, self._sampling, tenant=self._tenant, priority=_BATCH_PRIORITY)
        for attempt in range(_MAX_ATTEMPTS):
            try:
                text, is_cut = await self._read(request)
                return self._parsed(passage, text, is_cut=is_cut)
            except PromptTooLong:
                return [], Counter({"passages longer than the generator's context": 1})
            except Overloaded as error:
                if attempt == _MAX_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(error.retry_after_s)
        raise AssertionError("the loop returns or raises")

    async def _read(self, request: GenerateRequest) -> tuple[str, bool]:
        text, is_cut = "", False
        stream = cast("AsyncGenerator[GeneratedChunk]", self._generator.generate(request))
        async with aclosing(stream):
            async for chunk in stream:
                text += chunk.text
                is_cut = chunk.finish_reason not in (None, "stop")
        return text, is_cut

    def _parsed(
        self, passage: TrainingPassage, text: str, *, is_cut: bool
    ) -> tuple[list[TrainingQuestion], Counter[str]]:
        pairs = [(match["question"], match["answer"].strip()) for match in _PAIR.finditer(text)]
        left_out: Counter[str] = Counter()
        if not pairs:
            left_out["generations without a question and answer"] += 1
        if is_cut and pairs and text.rstrip().endswith(pairs[-1][1]):
            # The token limit may have cut the last answer short.
            pairs.pop()
            left_out["answers cut off"] += 1
        questions: dict[str, TrainingQuestion] = {}
        for question, answer in pairs[: self._num_per_passage]:
            if not holds_answer(passage.full_text, (answer,)):
                left_out["answers that the passage does not hold"] += 1
            elif holds_answer(question, (answer,)):
                left_out["questions that tell their answer"] += 1
            else:
                made = made_question("written", passage, question, answer)
                questions.setdefault(made.question_id, made)
        return list(questions.values()), left_out


def made_question(how: str, passage: TrainingPassage, question: str, answer: str) -> TrainingQuestion:
    """Return a question made from a passage; its id follows from both, its group is the passage."""
    return TrainingQuestion(
        question_id=f"{how}-{content_id(passage.passage_id, question)}",
        text=question,
        answers=(answer,),
        positive_ids=(passage.passage_id,),
        group=passage.passage_id,
    )
