"""Retriever and reader as one model: the losses of a part of a step.

Shapes: B questions, K passages a question, L answer tokens, U different passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.joint.config import JointConfig, RetrieverLoss
from training.joint.encoder_tower import EncoderTower, TowerProbe
from training.joint.order import seed_of
from training.joint.reader_rows import ReaderRow
from training.joint.reader_tower import AnswerLikelihoods, ReaderTower
from training.joint.selection import Selection, is_wrong
from training.losses import (
    EntropyControlledTemperature,
    FixedTemperature,
    TeacherTemperature,
    concat_lm_loss,
    mean_answer_log_probs,
    parallel_lm_loss,
    passage_log_probs,
)
from training.losses.loop import usefulness
from training.losses.named_loss import retriever_loss
from training.losses.output import LossOutput
from training.losses.utility import retrieval_utility
from training.types import TrainingPassage, TrainingQuestion


@dataclass(frozen=True, slots=True)
class Prepared:
    """A part of a step, ready to learn from."""

    selection: Selection
    """Questions and passages."""
    rows: tuple[ReaderRow, ...]
    """parallel: B*K rows, question by question. concat: B rows. Empty without a reader."""
    num_taught: int
    """Answer tokens the reader's loss is a mean over."""
    num_judged: int
    """Answer tokens a marginal retriever loss is a mean over."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the losses of a step are means over, on all ranks together, divided by their number."""

    questions: float
    """Questions."""
    taught: float
    """Answer tokens taught."""
    judged: float
    """Answer tokens by which passages are judged."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """The losses of a part; summed over parts and averaged over ranks they are those of one large batch."""

    loss: Tensor
    """Weighted sum, with gradients."""
    metrics: Mapping[str, float]
    """Each loss, and what tells how teaching goes."""
    teacher_BK: Tensor
    """What the passages were judged by, in nats per token; empty without a retriever loss."""
    teaches_BK: Tensor
    """bool[B, K]: False for questions without an answer to judge by."""


class JointModel(nn.Module):
    """Both towers, and the temperature between them."""

    def __init__(
        self,
        config: JointConfig,
        encoder: EncoderTower,
        reader: ReaderTower | None,
        passages: Sequence[TrainingPassage],
    ) -> None:
        """Compose.

        Args:
            config: Which losses, at which weights.
            encoder: The retriever.
            reader: None trains the retriever alone.
            passages: All that can be retrieved, by row.
        """
        super().__init__()
        self.encoder, self.reader = encoder, reader
        self.probe_encoder = TowerProbe(encoder)
        """Both sides of the retriever as of now."""
        self._config, self._passages = config, passages
        loss = config.loss
        self.temperature: TeacherTemperature = (
            FixedTemperature(loss.teacher_temperature)
            if loss.teacher_temperature > 0
            else EntropyControlledTemperature(
                entropy_share=loss.teacher_entropy, min_spread_nats=loss.min_spread
            )
        )
        """Of the reader's likelihoods."""

    @property
    def teaches(self) -> bool:
        """Return whether the reader teaches the retriever."""
        return self.reader is not None and self._config.loss.retriever is not None

    def prepare(self, selection: Selection, step: int) -> Prepared:
        """Return a part with the rows its reader sees; raises DataError for a question without an answer."""
        if self.reader is None:
            return Prepared(selection, (), 0, 0)
        make = self._parallel_rows if self._config.reader.form == "parallel" else self._concat_rows
        rows = make(selection, step)
        per_question = len(rows) // len(selection.questions)
        firsts = rows[::per_question]
        judged = [
            row.num_judged
            for row, question in zip(firsts, selection.questions, strict=True)
            if _judges(question)
        ]
        return Prepared(selection, tuple(rows), sum(len(row.answer_ids) for row in firsts), sum(judged))

    def learn(self, prepared: Prepared, totals: Totals) -> Learnt:
        """Return the losses of a part; see the configuration for what they are."""
        config, selection = self._config.loss, prepared.selection
        device = self.encoder.queries.device
        num_questions, k = selection.rows_BK.shape
        teaches_B = torch.tensor([_judges(question) for question in selection.questions], device=device)
        teaches_BK = teaches_B[:, None].expand(num_questions, k)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        scores_BK = self._scores(selection) if self._needs_scores else None
        teacher_BK = torch.zeros(0, device=device)
        if self.reader is not None:
            taught = self.reader.likelihoods(prepared.rows)
            judged = self._likelihoods(prepared.rows) if config.two_pass else taught
            metrics["reader/fill"] = taught.fill
            log_p_BK = (
                None
                if scores_BK is None
                else passage_log_probs(scores_BK, temperature=config.score_temperature)
            )
            if config.reader_weight > 0 and not self._config.reader.frozen:
                losses["reader"] = config.reader_weight * self._reader_loss(taught, log_p_BK, k, totals)
            if config.retriever is not None and scores_BK is not None:
                output, teacher_BK = self._retriever_loss(
                    config.retriever, prepared, judged, scores_BK, teaches_BK, totals
                )
                losses["retriever"] = config.retriever_weight * output.loss
                metrics |= {f"retriever/{name}": float(value) for name, value in output.metrics.items()}
                if config.null_passage and self._config.reader.form == "parallel" and log_p_BK is not None:
                    utility = self._utility(selection, judged, log_p_BK)
                    metrics["retriever/utility_nats"] = float(utility)
        total = torch.stack(list(losses.values())).sum() if losses else torch.zeros((), device=device)
        metrics |= {f"loss/{name}": float(value.detach()) for name, value in losses.items()}
        return Learnt(total, metrics, teacher_BK, teaches_BK)

    def save_passages(self, folder: Path) -> None:
        """Write the passage tower of the moment, for encoders of the index."""
        self.encoder.save(folder, "passage")

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps besides weights."""
        return self.temperature.state_dict()

    def load_state(self, state: dict[str, float]) -> None:
        """Take up what `state` returned; raises CheckpointError where it does not fit."""
        self.temperature.load_state_dict(state)

    @property
    def _needs_scores(self) -> bool:
        by_retriever = (
            self._config.loss.reader_passages == "retriever" and self._config.reader.form == "parallel"
        )
        return self.teaches or by_retriever

    def _scores(self, selection: Selection) -> Tensor:
        """Return float32[B, K], inner products of fresh vectors, with the gradients of both sides."""
        queries_BD = self.encoder.embed([question.text for question in selection.questions], "query")
        distinct_U, places_BK = np.unique(selection.rows_BK, return_inverse=True)
        passages_UD = self.encoder.embed([self._passages[row].full_text for row in distinct_U], "passage")
        places = torch.from_numpy(places_BK.reshape(selection.rows_BK.shape)).to(passages_UD.device)
        return torch.einsum("bd,bkd->bk", queries_BD, passages_UD[places])

    def _reader_loss(
        self, taught: AnswerLikelihoods, log_p_BK: Tensor | None, k: int, totals: Totals
    ) -> Tensor:
        if self._config.reader.form == "concat":
            return concat_lm_loss(taught.token_log_probs_NL, taught.taught_NL, denominator=totals.taught).loss
        weights_BK = log_p_BK if self._config.loss.reader_passages == "retriever" else None
        return parallel_lm_loss(
            _by_question(taught.token_log_probs_NL, k),
            _by_question(taught.taught_NL, k),
            log_p_BK=weights_BK,
            denominator=totals.taught,
        ).loss

    def _retriever_loss(
        self,
        name: RetrieverLoss,
        prepared: Prepared,
        judged: AnswerLikelihoods,
        scores_BK: Tensor,
        teaches_BK: Tensor,
        totals: Totals,
    ) -> tuple[LossOutput, Tensor]:
        """Return the loss and what the passages were judged by."""
        config = self._config.loss
        k = scores_BK.shape[1]
        full_log_prob_B = None
        if name == "loop":
            without = self._likelihoods(self._without_rows(prepared.selection))
            full_log_prob_B = mean_answer_log_probs(
                judged.token_log_probs_NL[:, None].detach(), judged.judged_NL
            )[:, 0]
            judged = without
        token_log_probs_BKL = _by_question(judged.token_log_probs_NL, k)
        mask_BKL = _by_question(judged.judged_NL, k)
        of_tokens = name.endswith("_token")
        output = retriever_loss(
            name,
            scores_BK,
            token_log_probs_BKL,
            mask_BKL,
            student_temperature=config.score_temperature,
            teacher_temperature=self.temperature.temperature,
            passage_mask_BK=teaches_BK,
            full_log_prob_B=full_log_prob_B,
            min_spread_nats=config.min_spread,
            denominator=totals.judged if of_tokens else totals.questions,
        )
        teacher_BK = mean_answer_log_probs(token_log_probs_BKL.detach(), mask_BKL.all(dim=1), teaches_BK)
        if full_log_prob_B is not None:
            teacher_BK = usefulness(full_log_prob_B, teacher_BK)
        return output, teacher_BK

    def _utility(self, selection: Selection, judged: AnswerLikelihoods, log_p_BK: Tensor) -> Tensor:
        """Return what retrieval is worth against no passage at all, in nats per answer token."""
        asked = [index for index, question in enumerate(selection.questions) if _judges(question)]
        if not asked:
            return torch.zeros(())
        null = self._likelihoods([self._row(selection.questions[index], (), None) for index in asked])
        token_log_probs_BKL = _by_question(judged.token_log_probs_NL, log_p_BK.shape[1])[asked]
        num_tokens = min(token_log_probs_BKL.shape[2], null.token_log_probs_NL.shape[1])
        mask_BL = null.judged_NL[:, :num_tokens]
        return retrieval_utility(
            log_p_BK[asked],
            token_log_probs_BKL[:, :, :num_tokens],
            null.token_log_probs_NL[:, :num_tokens],
            mask_BL,
        )

    def _likelihoods(self, rows: Sequence[ReaderRow]) -> AnswerLikelihoods:
        """Return likelihoods without gradients."""
        if self.reader is None:
            raise ConfigError("there is no reader to ask; set reader.model")
        return self.reader.likelihoods(rows, with_gradients=False)

    def _parallel_rows(self, selection: Selection, step: int) -> list[ReaderRow]:
        return [
            self._row(question, (row,), 1)
            for question, rows_K in zip(selection.questions, selection.rows_BK.tolist(), strict=True)
            for row in rows_K
        ]

    def _concat_rows(self, selection: Selection, step: int) -> list[ReaderRow]:
        """Return a row for each question: its passages, the right one left out of some (RAFT)."""
        rows = []
        for question, rows_K in zip(selection.questions, selection.rows_BK.tolist(), strict=True):
            shown = rows_K
            if self._config.reader.oracle_drop > 0:
                seed = seed_of(self._config.seed, "oracle", step, question.question_id)
                if np.random.Generator(np.random.PCG64(seed)).random() < self._config.reader.oracle_drop:
                    shown = [row for row in rows_K if self._is_wrong(row, question)] or rows_K
            rows.append(self._row(question, shown, self._cited(shown, question)))
        return rows

    def _without_rows(self, selection: Selection) -> list[ReaderRow]:
        """Return for each question K rows with one passage left out each."""
        return [
            self._row(question, rows_K[:place] + rows_K[place + 1 :], None)
            for question, rows_K in zip(selection.questions, selection.rows_BK.tolist(), strict=True)
            for place in range(len(rows_K))
        ]

    def _row(self, question: TrainingQuestion, rows: Sequence[int], cited: int | None) -> ReaderRow:
        if self.reader is None:
            raise ConfigError("there is no reader to make rows for; set reader.model")
        return self.reader.rows.row(question, [self._passages[row] for row in rows], cited)

    def _cited(self, rows: Sequence[int], question: TrainingQuestion) -> int | None:
        return next((place for place, row in enumerate(rows, 1) if not self._is_wrong(row, question)), None)

    def _is_wrong(self, row: int, question: TrainingQuestion) -> bool:
        return is_wrong(self._passages[row], question)


def _judges(question: TrainingQuestion) -> bool:
    """Return whether passages can be judged by how likely they make the question's answer."""
    return bool(question.answers) and not question.is_unanswerable


def _by_question(values_NL: Tensor, k: int) -> Tensor:
    return values_NL.view(-1, k, values_NL.shape[1])
