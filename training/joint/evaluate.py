"""What a run is judged by on held-out questions: retrieval with a fresh index, answers with the reader.

Shapes: Q questions, N passages, D dimensions, K ranks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from training.data.answers import AnswerText, exact_match, f1
from training.joint.config import EvaluationConfig
from training.joint.encoder_tower import EncoderTower, Side
from training.joint.order import seed_of
from training.joint.reader_tower import ReaderTower
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

_BATCH = 64
_ANSWER_BATCH = 16
_CITATION = re.compile(r"\s*(\[\d+\]\s*)+$")
RANKS = (1, 5, 20)
"""Ranks at which recall is given."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One held-out question after an evaluation."""

    question_id: str
    """The question."""
    rank: int | None
    """Rank of the first passage that answers it, from 0; None beyond the last one looked at."""
    answer: str | None
    """What the reader said; None where it was not asked."""
    exact_match: float | None
    """1 or 0; None where it was not asked."""
    f1: float | None
    """Word overlap with the best accepted answer; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """All held-out questions of one evaluation."""

    judged: tuple[Judged, ...]
    """In the order of the questions, so that two reports can be compared pair by pair."""

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(one) for one in self.judged]), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> EvaluationReport:
        """Return the report that `save` wrote."""
        return cls(tuple(Judged(**one) for one in json.loads(path.read_text(encoding="utf-8"))))

    def means(self) -> dict[str, float]:
        """Return recall at `RANKS`, MRR, and EM and F1 where the reader was asked."""
        ranks = [one.rank for one in self.judged]
        found = {
            f"recall@{k}": float(np.mean([rank is not None and rank < k for rank in ranks])) for k in RANKS
        }
        found["mrr"] = float(np.mean([0.0 if rank is None else 1.0 / (rank + 1) for rank in ranks]))
        for name, values in (
            ("em", [one.exact_match for one in self.judged if one.exact_match is not None]),
            ("f1", [one.f1 for one in self.judged if one.f1 is not None]),
        ):
            if values:
                found[name] = float(np.mean(values))
        return found


class Evaluation:
    """The held-out questions of a run, and the answers known to be right."""

    def __init__(self, held_out: TrainingSet, config: EvaluationConfig, seed: int) -> None:
        """Choose the questions, the same for every evaluation of the run.

        Args:
            held_out: Its passages are searched; questions that no passage answers are not counted.
            config: How many questions, and how they are answered.
            seed: Of the choice.
        """
        self._config = config
        self._passages = held_out.passages
        asked = [one for one in held_out.questions if one.answers or one.positive_ids]
        order = np.random.Generator(np.random.PCG64(seed_of(seed, "evaluation"))).permutation(len(asked))
        self._questions = [asked[index] for index in sorted(order[: config.max_questions])]
        self._texts = [AnswerText(passage.text) for passage in self._passages]

    @torch.no_grad()
    def run(self, encoder: EncoderTower, reader: ReaderTower | None) -> EvaluationReport:
        """Return how the towers do now; the corpus is encoded anew, so nothing is stale."""
        was_training = encoder.training
        encoder.eval()
        passages_ND = _embed(encoder, [passage.full_text for passage in self._passages], "passage")
        queries_QD = _embed(encoder, [question.text for question in self._questions], "query")
        depth = min(max(*RANKS, self._config.k), len(self._passages))
        rows_QK = np.stack([_best(passages_ND @ query_D, depth) for query_D in queries_QD])
        ranks = [
            self._rank(question, rows_K) for question, rows_K in zip(self._questions, rows_QK, strict=True)
        ]
        answers: Sequence[str | None] = [None] * len(self._questions)
        if reader is not None and self._config.generate:
            answers = self._answers(reader, rows_QK[:, : self._config.k])
        encoder.train(was_training)
        return EvaluationReport(
            tuple(
                Judged(
                    question.question_id,
                    rank,
                    answer,
                    None if answer is None else exact_match(answer, question.answers),
                    None if answer is None else f1(answer, question.answers),
                )
                for question, rank, answer in zip(self._questions, ranks, answers, strict=True)
            )
        )

    def _rank(self, question: TrainingQuestion, rows_K: np.ndarray) -> int | None:
        """Return the rank of the first right passage: a labelled one, or else one that holds the answer."""
        for rank, row in enumerate(rows_K.tolist()):
            if question.positive_ids:
                is_right = self._passages[row].passage_id in question.positive_ids
            else:
                is_right = self._texts[row].holds(question.answers)
            if is_right:
                return rank
        return None

    def _answers(self, reader: ReaderTower, rows_QK: np.ndarray) -> list[str]:
        was_training = reader.training
        reader.eval()
        prompts = [
            reader.rows.row(question, self._shown(rows_K), None).prompt_ids
            for question, rows_K in zip(self._questions, rows_QK, strict=True)
        ]
        # Prompts of like length share a batch; the order of answers is that of the questions.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers = [""] * len(prompts)
        for first in range(0, len(order), _ANSWER_BATCH):
            batch = order[first : first + _ANSWER_BATCH]
            made = reader.answer([prompts[index] for index in batch], self._config.max_new_tokens)
            for index, text in zip(batch, made, strict=True):
                answers[index] = _CITATION.sub("", text).strip()
        reader.train(was_training)
        return answers

    def _shown(self, rows_K: np.ndarray) -> list[TrainingPassage]:
        return [self._passages[row] for row in rows_K.tolist()]


def _embed(encoder: EncoderTower, texts: Sequence[str], side: Side) -> np.ndarray:
    """Return float32[N, D], encoded by length."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors_ND = np.empty((len(texts), encoder.dim), np.float32)
    for first in range(0, len(order), _BATCH):
        batch = order[first : first + _BATCH]
        vectors_ND[batch] = encoder.embed([texts[index] for index in batch], side).cpu().numpy()
    return vectors_ND


def _best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k best scores, best first, ties by row."""
    return np.lexsort((np.arange(len(scores_N)), -scores_N))[:k]
