"""The token rows a reader is trained on: served prompts with their answers, padded or packed.

Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serving.prompt import NOT_IN_DOCUMENTS, TURN_END, PromptPassage, encode_prompt, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.errors import DataError
from training.types import TrainingPassage, TrainingQuestion


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """One prompt and the answer it should get."""

    prompt_ids: list[int]
    """The prompt exactly as it is served."""
    answer_ids: list[int]
    """What is taught: the answer, its citation where it has one, the end of the turn."""
    num_judged: int
    """First tokens of the answer by which a passage is judged: citation and end say nothing about it."""

    @property
    def num_tokens(self) -> int:
        """Return the tokens the model reads; the last of the answer is only ever predicted."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows ready for a model, and where in them each answer token is predicted."""

    token_ids_RT: Tensor
    """int64[R, T]."""
    positions_RT: Tensor
    """int64[R, T]; they begin anew with each prompt of a packed row."""
    mask: Tensor
    """int64[R, T], 1 where there is a token; packed: bool[R, 1, T, T], True where one sees the other."""
    rows: Tensor
    """int64[num_answer_tokens]: row of the position that predicts it."""
    columns: Tensor
    """int64[num_answer_tokens]: column of that position."""
    labels: Tensor
    """int64[num_answer_tokens]: the token to predict."""
    owners: Tensor
    """int64[num_answer_tokens]: the `ReaderRow` it belongs to."""
    offsets: Tensor
    """int64[num_answer_tokens]: its place in that answer."""
    fill: float
    """Share of positions that hold a token."""


class RowMaker:
    """Turns questions and passages into rows for one tokenizer."""

    def __init__(self, tokenizer: ModelTokenizer, max_passage_tokens: int, max_answer_tokens: int) -> None:
        """Prepare.

        Args:
            tokenizer: The reader's.
            max_passage_tokens: A longer passage is cut there.
            max_answer_tokens: A longer answer is cut there, before its citation.
        """
        self._tokenizer = tokenizer
        self._max_passage_tokens, self._max_answer_tokens = max_passage_tokens, max_answer_tokens
        (self._turn_end_id,) = tokenizer.encode(TURN_END, trusted=True)

    def row(
        self, question: TrainingQuestion, passages: Sequence[TrainingPassage], cited: int | None
    ) -> ReaderRow:
        """Return the prompt with these passages in order, and the question's first answer.

        Args:
            question: One with an answer, or one known to have none.
            passages: Shown as [1]..[n].
            cited: 1-based passage the answer cites; None cites nothing. A question without an answer is
                answered with the refusal, whatever is given.

        Raises:
            DataError: The question has no answer and is not known to have none.
        """
        shown = [
            PromptPassage(
                passage.passage_id, passage.title, self._cut(passage.text, self._max_passage_tokens)
            )
            for passage in passages
        ]
        prompt_ids = encode_prompt(rag_prompt(question.text, shown), self._tokenizer)
        if question.is_unanswerable:
            judged = self._tokenizer.encode(NOT_IN_DOCUMENTS, trusted=False)
            return ReaderRow(prompt_ids, [*judged, self._turn_end_id], len(judged))
        if not question.answers:
            raise DataError(
                f"question {question.question_id!r} has no answer: give one, mark it unanswerable, or train "
                "without a reader"
            )
        # Behind a space, a word has the token it has inside a passage: answering is copying.
        judged = self._tokenizer.encode(f" {question.answers[0].strip()}", trusted=False)
        judged = judged[: self._max_answer_tokens]
        tail = [] if cited is None else self._tokenizer.encode(f" [{cited}]", trusted=False)
        return ReaderRow(prompt_ids, [*judged, *tail, self._turn_end_id], len(judged))

    def _cut(self, text: str, max_tokens: int) -> str:
        if len(text.encode()) <= max_tokens:  # No token is shorter than a byte.
            return text
        ids = self._tokenizer.encode(text, trusted=False)
        return text if len(ids) <= max_tokens else self._tokenizer.decode(ids[:max_tokens]).rstrip("\ufffd")


def batch_rows(rows: Sequence[ReaderRow], pad_id: int, row_tokens: int = 0) -> RowBatch:
    """Return rows as tensors.

    Args:
        rows: At least one.
        pad_id: Token that fills.
        row_tokens: Prompts are packed into rows of this many tokens, which see only themselves; 0 gives each
            a row of its own, padded to the longest.

    Raises:
        DataError: A prompt is longer than `row_tokens`.
    """
    longest = max(row.num_tokens for row in rows)
    if row_tokens and longest > row_tokens:
        raise DataError(
            f"a prompt of {longest:,} tokens does not fit reader.row_tokens={row_tokens:,}; raise it, show "
            "fewer passages, or lower reader.max_passage_tokens"
        )
    places = _packed_places(rows, row_tokens) if row_tokens else [(index, 0) for index in range(len(rows))]
    shape = (1 + max(row for row, _ in places), row_tokens or longest)
    token_ids_RT = np.full(shape, pad_id, np.int64)
    positions_RT = np.zeros(shape, np.int64)
    owners_RT = np.full(shape, -1, np.int64)
    targets: list[tuple[int, int, int, int, int]] = []
    for index, (row, (place, first)) in enumerate(zip(rows, places, strict=True)):
        span = slice(first, first + row.num_tokens)
        token_ids_RT[place, span] = [*row.prompt_ids, *row.answer_ids[:-1]]
        positions_RT[place, span] = np.arange(row.num_tokens)
        owners_RT[place, span] = index
        begin = first + len(row.prompt_ids) - 1
        targets += [
            (place, begin + offset, label, index, offset) for offset, label in enumerate(row.answer_ids)
        ]
    columns = torch.tensor(targets, dtype=torch.int64).T
    if row_tokens:
        owners = torch.from_numpy(owners_RT)
        same = owners[:, None, :, None] == owners[:, None, None, :]
        mask = same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    else:
        mask = torch.from_numpy((owners_RT >= 0).astype(np.int64))
    return RowBatch(
        torch.from_numpy(token_ids_RT),
        torch.from_numpy(positions_RT),
        mask,
        *columns,
        fill=float((owners_RT >= 0).mean()),
    )


def _packed_places(rows: Sequence[ReaderRow], row_tokens: int) -> list[tuple[int, int]]:
    """Return the row and first column of each prompt: best fit, the longest first."""
    used: list[int] = []
    places = [(0, 0)] * len(rows)
    for index in sorted(range(len(rows)), key=lambda one: (-rows[one].num_tokens, one)):
        length = rows[index].num_tokens
        fitting = [row for row, taken in enumerate(used) if taken + length <= row_tokens]
        if not fitting:
            fitting = [len(used)]
            used.append(0)
        row = max(fitting, key=lambda candidate: (used[candidate], -candidate))
        places[index] = (row, used[row])
        used[row] += length
    return places
