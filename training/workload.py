"""What the data of a run is like, as far as cost depends on it: how much there is, how long its texts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import numpy as np

from retrieval.model_files import model_folder, tokenizer_file
from training.joint.config import JointConfig
from training.types import TrainingSet

Item = TypeVar("Item")

_NUM_SAMPLES = 256
_NUM_LONGEST = 4
"""Texts with the most characters that are looked at besides: one of them has the most tokens, or nearly."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of texts in tokens."""

    tokens: tuple[int, ...]
    """Of a sample, at least one."""
    longest: int
    """Of all texts; what memory must hold."""

    @classmethod
    def fixed(cls, tokens: int) -> Lengths:
        """Return the lengths of texts that are all alike."""
        return cls((tokens,), tokens)

    def padded(self, num_rows: float) -> float:
        """Return the length that a batch of some rows is padded to: its longest one, on average."""
        return float(np.quantile(self.tokens, num_rows / (num_rows + 1.0)))

    @property
    def mean(self) -> float:
        """Return the mean length, which packed rows cost."""
        return float(np.mean(self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the data is like."""

    num_passages: int
    """Rows of the index."""
    text_bytes: int = 0
    """All passages' characters, which every rank holds."""
    queries: Lengths | None = None
    """Of questions; None takes the configured limit."""
    passages: Lengths | None = None
    """Of passages as the encoder reads them; None takes the configured limit."""
    rows: Lengths | None = None
    """Of reader rows; None computes it from the configured limits."""


def measured_workload(config: JointConfig, train: TrainingSet) -> Workload:
    """Return what a training set is like, from the lengths of a sample under the run's own tokenizers.

    Args:
        config: Models, limits and the reader's form.
        train: With passages and questions.

    Raises:
        FileNotFoundError: A model cannot be found.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file(model_folder(config.encoder.model))))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(limit: int) -> Callable[[str], int]:
        return lambda text: min(len(tokenizer.encode(text).ids), limit)

    return Workload(
        num_passages=len(train.passages),
        text_bytes=sum(len(passage.full_text) for passage in train.passages),
        queries=_lengths(
            [question.text for question in train.questions], len, count(config.encoder.max_query_tokens)
        ),
        passages=_lengths(
            [passage.full_text for passage in train.passages], len, count(config.encoder.max_passage_tokens)
        ),
        rows=_row_lengths(config, train),
    )


def _lengths(items: Sequence[Item], size: Callable[[Item], int], count: Callable[[Item], int]) -> Lengths:
    """Return the lengths of evenly spaced items, and of the largest."""
    picked = np.unique(np.linspace(0, len(items) - 1, min(_NUM_SAMPLES, len(items))).astype(int))
    largest = sorted(items, key=size, reverse=True)[:_NUM_LONGEST]
    sample = tuple(count(items[index]) for index in picked)
    return Lengths(sample, max(*sample, *(count(item) for item in largest)))


def _row_lengths(config: JointConfig, train: TrainingSet) -> Lengths | None:
    """Return the lengths of rows as the reader gets them; None without a reader."""
    if not config.reader.model or config.reader.form == "none":
        return None
    from serving.tokenizer import ModelTokenizer
    from training.joint.reader_rows import RowMaker

    reader = config.reader
    rows = RowMaker(
        ModelTokenizer(model_folder(reader.model) / "tokenizer.json"),
        reader.max_passage_tokens,
        reader.max_answer_tokens,
    )
    shown = config.search.k if reader.form == "concat" else 1
    passages = cycle(train.passages)
    asked = [one for one in train.questions if one.answers or one.is_unanswerable]
    if not asked:
        return None
    pairs = [(question, [next(passages) for _ in range(shown)]) for question in asked]
    longest = sorted(train.passages, key=lambda one: len(one.text), reverse=True)[:shown]
    pairs.append((max(asked, key=lambda one: len(one.text)), longest))
    return _lengths(
        pairs,
        lambda pair: len(pair[0].text) + sum(len(passage.text) for passage in pair[1]),
        lambda pair: rows.row(pair[0], pair[1], 1).num_tokens,
    )
