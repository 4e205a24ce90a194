"""One optimizer step of a joint run on one rank: select, learn in parts, average, move.

The losses are means over the questions (or answer tokens) of all parts of all ranks, so the step is that of
one large batch however it is cut.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from training.joint.config import JointConfig
from training.joint.contrastive_pass import ContrastivePass
from training.joint.joint_model import JointModel, Learnt, Prepared, Totals
from training.joint.optimizers import TowerOptimizer
from training.joint.parallel import Ranks
from training.joint.selection import Search, Selector
from training.types import TrainingPassage, TrainingQuestion


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did."""

    metrics: dict[str, float]
    """A function of configuration, data and seed, the same on every rank."""
    timings: dict[str, float]
    """Seconds of this rank."""


class JointStep:
    """Holds what a step needs besides its questions."""

    def __init__(
        self,
        config: JointConfig,
        model: JointModel,
        optimizers: Sequence[TowerOptimizer],
        passages: Sequence[TrainingPassage],
        ranks: Ranks,
    ) -> None:
        """Compose.

        Args:
            config: What decides the result.
            model: Both towers.
            optimizers: Of the towers that are trained.
            passages: All that can be retrieved, by row.
            ranks: This process among the others.
        """
        self._config, self._model, self._optimizers, self._ranks = config, model, optimizers, ranks
        self._selector = Selector(model.encoder, passages, config.search)
        self._contrastive = ContrastivePass(model.encoder, passages, config.loss)

    def run(self, step: int, questions: Sequence[TrainingQuestion], search: Search) -> StepReport:
        """Train on this rank's questions of a step.

        Args:
            step: Steps done before.
            questions: As many on every rank.
            search: The index as of this step.

        Raises:
            NumericsError: A loss or gradient is not finite; no weight was moved on any rank.
            IndexNotReady: A part of the index did not answer.
        """
        began = time.perf_counter()
        cuts = np.array_split(np.arange(len(questions)), self._config.optim.accumulate)
        prepared = []
        self._model.eval()
        with self._precision():
            for cut in cuts:
                selection = self._selector.select([questions[index] for index in cut], search)
                prepared.append(self._model.prepare(selection, step))
        selected = time.perf_counter()
        self._model.train()
        metrics = self._learn(prepared, questions)
        learnt = time.perf_counter()
        self._ranks.average_gradients([one.parameters for one in self._optimizers])
        # A loss that is not finite has reached every rank by now: all stop here, before a weight moves.
        norms = {f"grad_norm/{one.name}": one.clip(questions) for one in self._optimizers}
        for one in self._optimizers:
            one.move(step)
        moved = time.perf_counter()
        for one in prepared:
            for name, value in one.selection.metrics.items():
                share = len(one.selection.questions) / len(questions)
                metrics[name] = metrics.get(name, 0.0) + value * share
        metrics = self._ranks.mean(metrics) | norms
        if self._model.teaches:
            metrics["retriever/temperature"] = self._model.temperature.temperature
        return StepReport(
            metrics,
            {
                "time/select_s": selected - began,
                "time/learn_s": learnt - selected,
                "time/move_s": moved - learnt,
            },
        )

    def _learn(self, prepared: Sequence[Prepared], questions: Sequence[TrainingQuestion]) -> dict[str, float]:
        """Do the backward passes of all parts and return their metrics, summed as their losses are."""
        sums = self._ranks.mean(
            {
                "questions": float(len(questions)),
                "taught": float(sum(one.num_taught for one in prepared)),
                "judged": float(sum(one.num_judged for one in prepared)),
            }
        )
        totals = Totals(**{name: max(value, 1e-9) for name, value in sums.items()})
        metrics: dict[str, float] = {}
        learnt: list[Learnt] = []
        for one in prepared if self._model.reader is not None else ():
            with self._precision():
                part = self._model.learn(one, totals)
            part.loss.backward()
            learnt.append(part)
            share = len(one.selection.questions) / len(questions)
            for name, value in part.metrics.items():
                weight = 1.0 if name.startswith("loss/") else share
                metrics[name] = metrics.get(name, 0.0) + weight * value
        if self._config.loss.contrastive_weight > 0 and self._config.refresh.mode != "frozen":
            with self._precision():
                loss = self._contrastive.loss([one.selection for one in prepared])
                loss.backward()
            metrics["loss/contrastive"] = float(loss.detach())
        if self._model.teaches:
            # Once a step, after every part has used the one before: parts and ranks then change nothing.
            self._model.temperature.update(
                torch.cat([one.teacher_BK for one in learnt]), torch.cat([one.teaches_BK for one in learnt])
            )
        metrics["loss"] = sum(value for name, value in metrics.items() if name.startswith("loss/"))
        return metrics

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self._ranks.device.type, torch.bfloat16, enabled=self._config.optim.dtype == "bfloat16"
        )


def is_trained(tower: nn.Module | None) -> bool:
    """Return whether a tower has weights to move."""
    return tower is not None and any(weight.requires_grad for weight in tower.parameters())
