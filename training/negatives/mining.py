"""Hard negatives: passages that a search ranks high for a question and that do not answer it.

The rules are those of `sentence_transformers.util.mine_hard_negatives` (a test compares the results):
positives and candidates too near to a positive are taken away, then the rank window is counted over what
remains. Two rules are ours: copies of a positive under another id, and passages that hold an answer, are
taken away as well.

Sources: the relative margin is TopK-PercPos of NV-Retriever (Moreira et al. 2024,
https://arxiv.org/abs/2407.15831); dropping passages that hold the answer is DPR's
(https://arxiv.org/abs/2004.04906).

Legend of shape suffixes: Q questions, K ranks, D embedding dimension.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.data.answers import JUDGEMENTS, AnswerText, normalise
from training.data.ranking import PassageRanker, Searches
from training.data.sets import fingerprint
from training.errors import ConfigError, DataError, NumericsError
from training.negatives.mined import MinedNegatives, MiningReport
from training.types import TrainingQuestion, TrainingSet

_SPARE_DRAWS = 50
"""Random rows drawn beyond those needed, since some will hold an answer."""


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """Which candidates become negatives; ranks count from 0 over those that pass every other rule."""

    first_rank: int = 10
    """Where the window begins; the nearest candidates are the likeliest unlabelled answers."""
    last_rank: int = 100
    """Where the window ends, itself outside."""
    relative_margin: float | None = 0.05
    """A candidate's score is at most `p - margin * |p|`, with p the least score of the question's positives.

    A positive that the search does not find among its first ranks scores below every candidate, so that none
    passes. None switches the rule off: right for an encoder that is still weak.
    """
    num_negatives: int = 7
    """Negatives of each question."""
    choice: Literal["top", "random"] = "top"
    """The best of the window, or a random draw from it."""
    fills: bool = True
    """Whether a question with too few gets passages at random, outside what the search looked at."""
    seed: int = 0
    """Chooses what is random, together with the question's id."""

    def __post_init__(self) -> None:
        if not 0 <= self.first_rank < self.last_rank:
            raise ConfigError(
                f"ranks must be 0 <= first_rank < last_rank, got {self.first_rank} and {self.last_rank}"
            )
        window = self.last_rank - self.first_rank
        if not 1 <= self.num_negatives <= window:
            raise ConfigError(
                f"num_negatives must lie between 1 and the window's {window} ranks, got {self.num_negatives}"
            )
        if self.relative_margin is not None and not 0.0 <= self.relative_margin < 1.0:
            raise ConfigError(f"relative_margin must lie in [0, 1), got {self.relative_margin}")


class NegativeMiner:
    """Mines the negatives of one training set, from an index under training or from a live retriever."""

    def __init__(self, training_set: TrainingSet, config: MiningConfig) -> None:
        """Prepare the texts.

        Raises:
            DataError: No question has a positive passage.
        """
        self._set = training_set
        self._config = config
        self._row_of = {passage.passage_id: row for row, passage in enumerate(training_set.passages)}
        self._answer_texts: dict[int, AnswerText] = {}
        rows_of_text: dict[str, list[int]] = {}
        for row, passage in enumerate(training_set.passages):
            rows_of_text.setdefault(normalise(passage.text), []).append(row)
        self._positives: dict[str, frozenset[int]] = {}
        self._copies: dict[str, frozenset[int]] = {}
        for question in training_set.questions:
            if question.positive_ids:
                rows = {self._row_of[passage_id] for passage_id in question.positive_ids}
                same = {
                    copy for row in rows for copy in rows_of_text[normalise(training_set.passages[row].text)]
                }
                self._positives[question.question_id] = frozenset(rows)
                self._copies[question.question_id] = frozenset(same - rows)
        if not self._positives:
            raise DataError(f"{training_set.name}: no question has a positive passage to mine around")

    @property
    def num_ranks(self) -> int:
        """Return how many ranks are searched: the window, and room for the positives in front of it."""
        most = max(len(rows) + len(self._copies[one]) for one, rows in self._positives.items())
        return min(self._config.last_rank + most, len(self._set.passages))

    def mine(self, queries_QD: np.ndarray, searches: Searches, *, batch_size: int = 1024) -> MinedNegatives:
        """Return the negatives that an index over the set's passages gives.

        Args:
            queries_QD: float32[num_questions, dim], one row per question of the set, in order.
            searches: Rows are the set's.
            batch_size: Queries of one search.

        Raises:
            DataError: Queries or rows are not those of the set.
            NumericsError: A score is NaN.
        """
        if len(queries_QD) != len(self._set.questions):
            raise DataError(
                f"{len(queries_QD)} query vectors for {len(self._set.questions)} questions; embed all of them"
            )
        asked = [index for index, one in enumerate(self._set.questions) if one.positive_ids]
        tally = _Tally()
        negatives: dict[str, tuple[str, ...]] = {}
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            rows_QK, scores_QK = searches.search(queries_QD[batch], self.num_ranks)
            self._check(rows_QK, scores_QK)
            for index, rows_K, scores_K in zip(batch, rows_QK, scores_QK, strict=True):
                question = self._set.questions[index]
                found = rows_K >= 0
                negatives[question.question_id] = self._choose(
                    question, rows_K[found].tolist(), scores_K[found].tolist(), tally
                )
        return self._mined(negatives, tally)

    async def mine_live(self, ranker: PassageRanker) -> MinedNegatives:
        """Return the negatives that a search by words gives; hits outside the set take no rank.

        Raises:
            NumericsError: A score is NaN.
        """
        asked = [one for one in self._set.questions if one.positive_ids]
        tally = _Tally()
        negatives: dict[str, tuple[str, ...]] = {}
        ranked = await ranker.rank([one.text for one in asked], self.num_ranks)
        for question, hits in zip(asked, ranked, strict=True):
            rows, scores = [], []
            for hit in hits:
                row = None if hit.passage_id is None else self._row_of.get(hit.passage_id)
                if row is None:
                    tally.num_outside += 1
                else:
                    rows.append(row)
                    scores.append(hit.score)
            self._check(np.array([rows], dtype=np.int64), np.array([scores], dtype=np.float64))
            negatives[question.question_id] = self._choose(question, rows, scores, tally)
        return self._mined(negatives, tally)

    def _check(self, rows_QK: np.ndarray, scores_QK: np.ndarray) -> None:
        if rows_QK.size and rows_QK.max() >= len(self._set.passages):
            raise DataError(
                f"the index returned row {rows_QK.max()}, the set has {len(self._set.passages)} passages; "
                "build the index over this set"
            )
        if np.isnan(scores_QK[rows_QK >= 0]).any():
            raise NumericsError("a search returned a score that is NaN; check the encoder's weights")

    def _choose(
        self, question: TrainingQuestion, rows: list[int], scores: list[float], tally: _Tally
    ) -> tuple[str, ...]:
        """Return the ids of a question's negatives, hardest first, random ones last."""
        config = self._config
        # Equal scores go by row, so that the order of a search's ties does not matter.
        ranked = sorted(zip(rows, scores, strict=True), key=lambda one: (-one[1], one[0]))
        threshold = self._threshold(question, ranked, tally)
        remaining: list[tuple[int, float]] = []
        wanted = config.first_rank + config.num_negatives if config.choice == "top" else config.last_rank
        for row, score in ranked:
            if len(remaining) == wanted:
                break
            if self._passes(question, row, score, threshold, tally):
                remaining.append((row, score))
        rng = self._rng(question)
        window = remaining[config.first_rank : config.last_rank]
        if config.choice == "random":
            drawn = rng.sample(range(len(window)), min(config.num_negatives, len(window)))
            window = [window[index] for index in sorted(drawn)]
        chosen = window[: config.num_negatives]
        tally.negative_scores += [score for _, score in chosen]
        negatives = [row for row, _ in chosen]
        if config.fills and len(negatives) < config.num_negatives:
            filled = self._random_rows(question, set(rows), config.num_negatives - len(negatives), rng)
            tally.num_random += len(filled)
            negatives += filled
        tally.num_short += len(negatives) < config.num_negatives
        return tuple(self._set.passages[row].passage_id for row in negatives)

    def _threshold(
        self, question: TrainingQuestion, ranked: Sequence[tuple[int, float]], tally: _Tally
    ) -> float:
        positives = self._positives[question.question_id]
        found = [score for row, score in ranked if row in positives]
        tally.positive_scores += found
        tally.num_positives_not_found += len(positives) - len(found)
        if self._config.relative_margin is None:
            return np.inf
        if len(found) < len(positives):
            return -np.inf
        # Subtracting keeps the sign right where a positive's score is negative.
        return min(found) - abs(min(found)) * self._config.relative_margin

    def _passes(
        self, question: TrainingQuestion, row: int, score: float, threshold: float, tally: _Tally
    ) -> bool:
        tally.num_candidates += 1
        if row in self._positives[question.question_id] or row in self._copies[question.question_id]:
            tally.num_positives += 1
        elif score > threshold:
            tally.num_over_margin += 1
        elif self._holds_answer(question, row):
            tally.num_holding_answer += 1
        else:
            return True
        return False

    def _holds_answer(self, question: TrainingQuestion, row: int) -> bool:
        answers = [one for one in question.answers if normalise(one) not in JUDGEMENTS]
        if not answers:
            return False
        if row not in self._answer_texts:
            self._answer_texts[row] = AnswerText(self._set.passages[row].full_text)
        return self._answer_texts[row].holds(answers)

    def _rng(self, question: TrainingQuestion) -> random.Random:
        digest = hashlib.sha256(f"{self._config.seed}\0{question.question_id}".encode()).digest()
        return random.Random(int.from_bytes(digest[:8], "big"))

    def _random_rows(
        self, question: TrainingQuestion, seen: set[int], num_rows: int, rng: random.Random
    ) -> list[int]:
        taken = seen | self._positives[question.question_id] | self._copies[question.question_id]
        num_passages = len(self._set.passages)
        drawn = rng.sample(range(num_passages), min(num_passages, num_rows + len(taken) + _SPARE_DRAWS))
        rows: list[int] = []
        for row in drawn:
            if len(rows) == num_rows:
                break
            if row not in taken and not self._holds_answer(question, row):
                rows.append(row)
        return rows

    def _mined(self, negatives: dict[str, tuple[str, ...]], tally: _Tally) -> MinedNegatives:
        report = MiningReport(
            num_questions=len(self._set.questions),
            num_without_positive=len(self._set.questions) - len(negatives),
            num_positives_not_found=tally.num_positives_not_found,
            num_candidates=tally.num_candidates,
            num_positives=tally.num_positives,
            num_over_margin=tally.num_over_margin,
            num_holding_answer=tally.num_holding_answer,
            num_outside=tally.num_outside,
            num_mined=len(tally.negative_scores),
            num_random=tally.num_random,
            num_short=tally.num_short,
            mean_positive_score=_mean(tally.positive_scores),
            mean_negative_score=_mean(tally.negative_scores),
        )
        return MinedNegatives(fingerprint(self._set), negatives, report)


class _Tally:
    """Counts while mining."""

    def __init__(self) -> None:
        self.num_positives_not_found = 0
        self.num_candidates = 0
        self.num_positives = 0
        self.num_over_margin = 0
        self.num_holding_answer = 0
        self.num_outside = 0
        self.num_random = 0
        self.num_short = 0
        self.positive_scores: list[float] = []
        self.negative_scores: list[float] = []


def _mean(scores: Sequence[float]) -> float | None:
    return float(np.mean(scores)) if scores else None
