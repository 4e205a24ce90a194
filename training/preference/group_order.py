"""The order in which questions are asked: a function of the seed and the position alone.

TRL's RepeatSampler draws each pass over the data from one generator, so a run resumed in its second pass asks
the questions of the first again. Here the whole run is one pass for the trainer, which it skips through.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class GroupOrder(Sampler[int]):
    """Rows of questions, each `group_size` times in a row, batches repeated for the passes over them."""

    def __init__(
        self,
        num_questions: int,
        *,
        questions_per_batch: int,
        group_size: int,
        repeats: int,
        num_batches: int,
        seed: int,
    ) -> None:
        """Remember the sizes.

        Args:
            num_questions: Rows there are.
            questions_per_batch: Of one batch of rollouts.
            group_size: Rollouts of a question.
            repeats: Times a batch is read: its micro-batches times the optimiser's passes over it.
            num_batches: Batches of the whole run.
            seed: Of the order.
        """
        self._num_questions = num_questions
        self._questions_per_batch = questions_per_batch
        self._group_size = group_size
        self._repeats = repeats
        self._num_batches = num_batches
        self._seed = seed

    def __len__(self) -> int:
        """Return how many rows are yielded."""
        return self._num_batches * self._repeats * self._questions_per_batch * self._group_size

    def __iter__(self) -> Iterator[int]:
        """Yield rows; every question comes once before any comes again."""
        order: list[int] = []
        for batch in range(self._num_batches):
            chosen: list[int] = []
            for position in range(batch * self._questions_per_batch, (batch + 1) * self._questions_per_batch):
                turn, place = divmod(position, self._num_questions)
                if place == 0 or not order:
                    order = list(range(self._num_questions))
                    random.Random(f"{self._seed}:{turn}").shuffle(order)
                chosen.append(order[place])
            for _ in range(self._repeats):
                for row in chosen:
                    yield from [row] * self._group_size
