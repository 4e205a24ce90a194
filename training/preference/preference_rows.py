"""Preference pairs as token rows for DPO and for the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agents.search_loop import SearchLimits
from serving.tokenizer import ModelTokenizer
from training.errors import DataError
from training.preference.examples import CitedAnswer, SearchTrace
from training.preference.pairs import PreferencePair
from training.preference.sequences import check_coverage, pad_right


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows a prompt: the model's tokens and what it was shown between them."""

    prompt_ids: tuple[int, ...]
    """The prompt."""
    token_ids: tuple[int, ...]
    """Everything after it."""
    is_model: tuple[bool, ...]
    """Whether the model wrote each; observations are False."""


def continuation(
    example: CitedAnswer | SearchTrace, tokenizer: ModelTokenizer, limits: SearchLimits
) -> Continuation:
    """Return an example as prompt and continuation.

    Raises:
        DataError: A trace does not replay within the limits.
    """
    if isinstance(example, SearchTrace):
        rollout = example.replay(tokenizer, limits, max_tokens=1_000_000)
        mask = tuple(bool(mine) for mine in rollout.mask)
        return Continuation(tuple(rollout.prompt_ids), tuple(rollout.completion_ids), mask)
    answer = tuple(example.answer_ids(tokenizer))
    return Continuation(tuple(example.prompt_ids(tokenizer)), answer, (True,) * len(answer))


def preference_rows(
    pairs: Sequence[PreferencePair], tokenizer: ModelTokenizer, limits: SearchLimits, max_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """Return rows of token ids, and how many pairs were too long.

    A row is {prompt_ids, chosen_ids, chosen_mask, rejected_ids, rejected_mask}. A pair is never cut: half a
    rejected answer is another answer.

    Raises:
        DataError: No pair fits, or the two sides of one do not begin with the same prompt.
    """
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        chosen = continuation(pair.chosen, tokenizer, limits)
        rejected = continuation(pair.rejected, tokenizer, limits)
        if chosen.prompt_ids != rejected.prompt_ids:
            raise DataError(
                f"the two answers to {pair.chosen.question[:60]!r} were given to different prompts"
            )
        longest = max(len(chosen.token_ids), len(rejected.token_ids))
        if len(chosen.prompt_ids) + longest > max_tokens:
            continue
        rows.append(
            {
                "prompt_ids": list(chosen.prompt_ids),
                "chosen_ids": list(chosen.token_ids),
                "chosen_mask": [int(mine) for mine in chosen.is_model],
                "rejected_ids": list(rejected.token_ids),
                "rejected_mask": [int(mine) for mine in rejected.is_model],
            }
        )
    if not rows:
        raise DataError(
            f"none of {len(pairs)} pairs fits {max_tokens:,} tokens; give pairs, or raise max_tokens"
        )
    return rows, len(pairs) - len(rows)


@dataclass(slots=True)
class PairCollator:
    """Batches of rows for DPO, chosen first, observations masked; the mask's coverage is checked in each.

    TRL's own collator marks everything after the prompt: passages that a search returned would then be
    preferred or rejected as if the model had written them.
    """

    pad_id: int
    """Id that fills rows up."""
    num_tokens: int = 0
    """Tokens batched so far, without padding."""
    num_targets: int = 0
    """Of those, tokens that the model wrote."""

    @property
    def coverage(self) -> float:
        """Return the share of tokens that the model wrote, 0 before the first batch."""
        return self.num_targets / self.num_tokens if self.num_tokens else 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return int64 tensors [2 * batch, longest]: input_ids, attention_mask, completion_mask.

        Raises:
            DataError: The mask of the batch does not cover exactly the model's tokens.
        """
        sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
        ids = [row["prompt_ids"] + row[f"{side}_ids"] for row, side in sides]
        masks = [[0] * len(row["prompt_ids"]) + row[f"{side}_mask"] for row, side in sides]
        ids_BT, mask_BT = pad_right(ids, self.pad_id), pad_right(masks, 0)
        attention_BT = pad_right([[1] * len(one) for one in ids], 0)
        expected = [sum(row[f"{side}_mask"]) for row, side in sides]
        check_coverage(mask_BT.bool(), attention_BT, expected)
        self.num_tokens += int(attention_BT.sum())
        self.num_targets += sum(expected)
        return {"input_ids": ids_BT, "attention_mask": attention_BT, "completion_mask": mask_BT}
