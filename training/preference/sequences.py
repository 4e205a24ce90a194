"""Token sequences with the loss placed token by token, and the batches made of them.

A mask is carried from the place where each token was written (prompt, passage, model) to the batch, and
checked there; no search for marker tokens decides it. Self-RAG's published script looks for `</paragraph>`
without stopping at the first, so with several paragraphs it masks generated text too (research note:
`retrieval_lm/finetune.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.errors import DataError

IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True, slots=True)
class MaskedSequence:
    """Tokens, and which of them are learned."""

    token_ids: tuple[int, ...]
    """All of them, prompt first."""
    is_target: tuple[bool, ...]
    """Whether each is learned; as long as `token_ids`, never True at the first, which nothing predicts."""

    def __post_init__(self) -> None:
        """Refuse masks that do not fit; raises DataError."""
        if len(self.token_ids) != len(self.is_target):
            raise DataError(f"{len(self.token_ids)} tokens have a mask of {len(self.is_target)}")
        if not any(self.is_target):
            raise DataError("a sequence with nothing to learn; leave it out")
        if self.is_target[0]:
            raise DataError("the first token of a sequence cannot be learned: nothing comes before it")

    @property
    def num_targets(self) -> int:
        """Return how many tokens are learned."""
        return sum(self.is_target)

    @property
    def labels(self) -> list[int]:
        """Return the ids of learned tokens, `IGNORED` elsewhere."""
        return [
            token if mine else IGNORED for token, mine in zip(self.token_ids, self.is_target, strict=True)
        ]

    def cut(self, max_tokens: int) -> MaskedSequence | None:
        """Return the first `max_tokens` tokens, None where they hold nothing to learn."""
        if len(self.token_ids) <= max_tokens:
            return self
        if not any(self.is_target[:max_tokens]):
            return None
        return MaskedSequence(self.token_ids[:max_tokens], self.is_target[:max_tokens])


def pad_right(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return int64[num_rows, longest], shorter rows filled with `value`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


@dataclass(slots=True)
class MaskedCollator:
    """Batches of rows {input_ids, labels, num_targets}; the mask's coverage is checked in each."""

    pad_id: int
    """Id that fills rows up."""
    num_tokens: int = 0
    """Tokens batched so far, without padding."""
    num_targets: int = 0
    """Of those, tokens that are learned."""

    @property
    def coverage(self) -> float:
        """Return the share of tokens that are learned, 0 before the first batch."""
        return self.num_targets / self.num_tokens if self.num_tokens else 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return int64 tensors [batch, longest]: input_ids, attention_mask, labels.

        Raises:
            DataError: The labels of the batch do not cover exactly the tokens that are to be learned.
        """
        ids_BT = pad_right([row["input_ids"] for row in rows], self.pad_id)
        labels_BT = pad_right([row["labels"] for row in rows], IGNORED)
        attention_BT = pad_right([[1] * len(row["input_ids"]) for row in rows], 0)
        check_coverage(labels_BT != IGNORED, attention_BT, [row["num_targets"] for row in rows])
        self.num_tokens += int(attention_BT.sum())
        self.num_targets += sum(row["num_targets"] for row in rows)
        return {"input_ids": ids_BT, "attention_mask": attention_BT, "labels": labels_BT}


def check_coverage(mask_BT: torch.Tensor, attention_BT: torch.Tensor, expected: Sequence[int]) -> None:
    """Check that a batch's mask covers what its rows say is learned, and no padding.

    Args:
        mask_BT: bool[batch, longest], True where a token is learned.
        attention_BT: int64[batch, longest], 0 at padding.
        expected: Learned tokens of each row.

    Raises:
        DataError: It does not.
    """
    found = mask_BT.sum(dim=1).tolist()
    if found != list(expected) or bool((mask_BT & (attention_BT == 0)).any()):
        raise DataError(
            f"the mask of a batch covers {found} tokens, its rows say {list(expected)}: "
            "a mask was shifted or cut; this is a bug"
        )
