"""From reading examples and running text to rows of token ids of one length.

A reading example is packed once: its passages, then every question as a *branch*. A token of a branch sees
the passages and its own branch only, and its positions continue from the passages, so each branch gives
exactly the tokens, positions and context of a served prompt with that one question. Several questions then
cost one reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.prompt import END_OF_TEXT, TURN_END, TextEncoder, encode_prompt, rag_prompt
from serving.types import Prompt
from training.pretraining.reading_tasks import ReadingExample

NO_TARGET = -100
"""Marks a position without loss."""


@dataclass(frozen=True, slots=True)
class PackedDocument:
    """Parallel lists, one entry a token."""

    kind: str
    """The practice task it came from."""
    token_ids: list[int]
    """The tokens."""
    positions: list[int]
    """Rotary positions; every branch starts where the passages end."""
    branches: list[int]
    """0 for the passages, 1.. for questions."""
    targets: list[int]
    """The next token where it is to be learnt, NO_TARGET elsewhere."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents; all arrays are int64[rows, row_tokens] unless said otherwise."""

    token_ids: np.ndarray
    """Tokens; END_OF_TEXT pads."""
    positions: np.ndarray
    """Rotary positions."""
    documents: np.ndarray
    """Number of the document within the batch; -1 for padding."""
    branches: np.ndarray
    """Branch within the document."""
    targets: np.ndarray
    """Next token or NO_TARGET."""
    kinds: tuple[str, ...]
    """Task of each document, by its number."""
    fill: float
    """Share of positions that are not padding."""


def control_id(token: str, encoder: TextEncoder) -> int:
    """Return the id of one control token."""
    (token_id,) = encoder.encode(token, trusted=True)
    return token_id


def pack_example(kind: str, example: ReadingExample, encoder: TextEncoder) -> PackedDocument:
    """Return an example as one document whose loss falls on the answers alone."""
    end_id = control_id(TURN_END, encoder)
    first = rag_prompt(example.questions[0].question, example.passages)
    shared = Prompt(tuple(s for s in first.segments if s.kind in ("system", "passage")))
    token_ids = encode_prompt(shared, encoder)
    prefix_len = len(token_ids)
    positions, branches = list(range(prefix_len)), [0] * prefix_len
    targets = [NO_TARGET] * prefix_len
    for branch, item in enumerate(example.questions, start=1):
        prompt = rag_prompt(item.question, ())
        asked = encode_prompt(Prompt(tuple(s for s in prompt.segments if s.kind != "system")), encoder)
        answer = [*encoder.encode(item.text, trusted=False), end_id]
        # The last token is only ever predicted: nothing follows the end of the turn.
        branch_ids = asked + answer[:-1]
        token_ids += branch_ids
        positions += range(prefix_len, prefix_len + len(branch_ids))
        branches += [branch] * len(branch_ids)
        targets += [NO_TARGET] * (len(asked) - 1) + answer
    return PackedDocument(kind, token_ids, positions, branches, targets)


def pack_text(text: str, encoder: TextEncoder, max_tokens: int) -> PackedDocument:
    """Return the first `max_tokens` tokens of a text as a document with loss on every token."""
    token_ids = [*encoder.encode(text, trusted=False), control_id(END_OF_TEXT, encoder)][: max_tokens + 1]
    inputs = token_ids[:-1]
    return PackedDocument("text", inputs, list(range(len(inputs))), [0] * len(inputs), token_ids[1:])


def fill_rows(documents: Sequence[PackedDocument], rows: int, row_tokens: int, pad_id: int) -> Batch:
    """Return `rows` rows, best fit by decreasing length; documents that fit nowhere are left out."""
    shape = (rows, row_tokens)
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    branches = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, NO_TARGET, dtype=np.int64)
    used = [0] * rows
    kinds: list[str] = []
    for document in sorted(documents, key=lambda item: -len(item.token_ids)):
        length = len(document.token_ids)
        open_rows = [row for row in range(rows) if used[row] + length <= row_tokens]
        if not open_rows:
            continue
        row = max(open_rows, key=lambda candidate: (used[candidate], -candidate))
        span = slice(used[row], used[row] + length)
        token_ids[row, span] = document.token_ids
        positions[row, span] = document.positions
        owners[row, span] = len(kinds)
        branches[row, span] = document.branches
        targets[row, span] = document.targets
        used[row] += length
        kinds.append(document.kind)
    return Batch(
        token_ids, positions, owners, branches, targets, tuple(kinds), float(sum(used)) / (rows * row_tokens)
    )
