"""The losses again, in NumPy and float64, as their equations read; loops instead of masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from torch import Tensor

TAU_R, TAU_T = 0.7, 0.4


@dataclass(frozen=True)
class Drawn:
    """Random inputs in float64: ragged passages and answers, every question has at least two passages."""

    scores_BK: Tensor
    token_log_probs_BKL: Tensor
    answer_mask_BL: Tensor
    passage_mask_BK: Tensor

    def passages(self, i: int) -> list[int]:
        return self.passage_mask_BK[i].nonzero().flatten().tolist()

    def tokens(self, i: int) -> list[int]:
        return self.answer_mask_BL[i].nonzero().flatten().tolist()

    def student(self, i: int) -> np.ndarray:
        return log_softmax(self.scores_BK[i, self.passages(i)].detach().numpy() / TAU_R)

    def log_probs(self, i: int) -> np.ndarray:
        """[passages, tokens] of one question, without padding."""
        return self.token_log_probs_BKL[i].detach().numpy()[np.ix_(self.passages(i), self.tokens(i))]

    def teacher(self, i: int) -> np.ndarray:
        return log_softmax(self.log_probs(i).mean(axis=1) / TAU_T)

    @property
    def num_questions(self) -> int:
        return len(self.scores_BK)

    @property
    def num_tokens(self) -> int:
        return int(self.answer_mask_BL.sum())


def draw(seed: int = 0, *, questions: int = 3, passages: int = 4, tokens: int = 5) -> Drawn:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    answer_mask = torch.zeros(questions, tokens, dtype=torch.bool)
    passage_mask = torch.zeros(questions, passages, dtype=torch.bool)
    for i in range(questions):
        answer_mask[i, : tokens - i % tokens] = True
        passage_mask[i, : max(2, passages - i)] = True
    scores = normal(questions, passages).requires_grad_()
    log_probs = (-normal(questions, passages, tokens).abs()).requires_grad_()
    return Drawn(scores, log_probs, answer_mask, passage_mask)


def pdist(drawn: Drawn) -> float:
    terms = [
        (np.exp(t) * (t - s)).sum()
        for t, s in ((drawn.teacher(i), drawn.student(i)) for i in range(drawn.num_questions))
    ]
    return sum(terms) / drawn.num_questions


def lsr(drawn: Drawn) -> float:
    terms = [
        (np.exp(s) * (s - t)).sum()
        for t, s in ((drawn.teacher(i), drawn.student(i)) for i in range(drawn.num_questions))
    ]
    return sum(terms) / drawn.num_questions


def rag_token(drawn: Drawn) -> float:
    total = sum(
        logsumexp(drawn.student(i)[:, None] + drawn.log_probs(i), axis=0).sum()
        for i in range(drawn.num_questions)
    )
    return -total / drawn.num_tokens


def rag_sequence(drawn: Drawn) -> float:
    total = sum(
        logsumexp(drawn.student(i) + drawn.log_probs(i).sum(axis=1)) for i in range(drawn.num_questions)
    )
    return -total / drawn.num_questions


def loop(drawn: Drawn, full_log_prob_B: np.ndarray) -> float:
    total = 0.0
    for i in range(drawn.num_questions):
        useful = full_log_prob_B[i] - drawn.log_probs(i).mean(axis=1)
        target = log_softmax(useful / TAU_T)
        total += (np.exp(target) * (target - drawn.student(i))).sum()
    return total / drawn.num_questions


def parallel_lm(drawn: Drawn, *, by_relevance: bool) -> float:
    total = 0.0
    for i in range(drawn.num_questions):
        count = len(drawn.passages(i))
        weights = np.exp(drawn.student(i)) if by_relevance else np.full(count, 1 / count)
        total -= (weights * drawn.log_probs(i).sum(axis=1)).sum()
    return total / drawn.num_tokens
