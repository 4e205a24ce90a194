"""Which questions a step trains on: a function of (seed, step) alone, so nothing need be stored to resume."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

from training.errors import DataError


def seed_of(*parts: int | str) -> int:
    """Return 63 bits that depend on every part, for a generator of one purpose."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed the generators of Python, NumPy and torch by every part; set at each step, none need be stored."""
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class SampleOrder:
    """A fresh permutation of the questions each epoch, cut into batches that run on over its end."""

    def __init__(self, seed: int, num_questions: int, batch_questions: int) -> None:
        """Prepare.

        Args:
            seed: Of the run.
            num_questions: Questions there are.
            batch_questions: Questions a step over all ranks.

        Raises:
            DataError: There are fewer questions than a step takes.
        """
        if num_questions < batch_questions:
            raise DataError(
                f"{num_questions:,} questions are fewer than optim.batch_questions={batch_questions:,}; "
                "give more questions or a smaller batch"
            )
        self._seed, self._num_questions, self._batch = seed, num_questions, batch_questions
        self._epoch = -1
        self._permutation_N = np.empty(0, np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Return the questions of a step: int64[batch_questions], the same for any number of ranks."""
        positions = np.arange(step * self._batch, (step + 1) * self._batch)
        return np.array([self._question(int(position)) for position in positions], np.int64)

    def share(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """Return a rank's questions of a step: every `world_size`-th, beginning with its own number."""
        return self.batch(step)[rank::world_size]

    def _question(self, position: int) -> int:
        epoch, offset = divmod(position, self._num_questions)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64(seed_of(self._seed, "order", epoch)))
            self._permutation_N = generator.permutation(self._num_questions)
            self._epoch = epoch
        return int(self._permutation_N[offset])
