"""The joint loop: search, learn, refresh, save; the same on one process, under torchrun and under Ray Train."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from training.checkpoints.run_checkpoints import RunCheckpoints
from training.errors import ConfigError, NumericsError
from training.index.refresh_report import RefresherState, RefreshReport
from training.index.refresher import Refresher
from training.index.schedule import RefreshPlan
from training.joint.config import JointConfig
from training.joint.evaluate import Evaluation, EvaluationReport
from training.joint.joint_model import JointModel
from training.joint.optimizers import TowerOptimizer
from training.joint.order import SampleOrder, seed_of
from training.joint.parallel import Ranks, replicated
from training.joint.run_log import RunLog
from training.joint.selection import Selection, Selector
from training.types import TrainingSet

_log = logging.getLogger(__name__)

_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    steps: int
    """Optimizer steps done."""
    was_stopped: bool
    """Whether it was told to stop before its last step; it can be resumed."""
    before: EvaluationReport | None
    """Held-out questions before the first step; None where there were none, or the run was resumed."""
    after: EvaluationReport | None
    """Held-out questions after the last step."""


@dataclass(slots=True)
class Watch:
    """What the outside sees of a run and how it stops it."""

    on_step: Callable[[int, dict[str, float]], None] = field(default=lambda step, metrics: None)
    """Called on every rank after each step."""
    should_stop: Callable[[], bool] = field(default=lambda: False)
    """Asked after each step on every rank; True saves a checkpoint and ends the run (a notice of preemption)."""


class JointTrainer:
    """One run on one rank."""

    def __init__(
        self,
        config: JointConfig,
        data: TrainingSet,
        model: JointModel,
        refresher: Refresher,
        checkpoints: RunCheckpoints,
        folder: Path,
        *,
        held_out: TrainingSet | None = None,
        ranks: Ranks | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Compose a run; `training.joint.run.run_joint` is the usual way.

        Args:
            config: What decides the result.
            data: Passages that are searched and questions trained on.
            model: Both towers.
            refresher: The index; this rank's view of it.
            checkpoints: Where the run is saved.
            folder: Of the run: logs are written there by the first rank.
            held_out: Questions it is judged by.
            ranks: This process among the others.
            watch: Reports to the outside.

        Raises:
            ConfigError: The questions of a step cannot be shared evenly.
            DataError: There is too little data.
        """
        self._ranks, self._watch = ranks or Ranks(), watch or Watch()
        per_rank, left = divmod(config.optim.batch_questions, self._ranks.world_size)
        if left or per_rank < config.optim.accumulate:
            raise ConfigError(
                f"optim.batch_questions={config.optim.batch_questions} cannot be shared evenly by "
                f"{self._ranks.world_size} ranks in accumulate={config.optim.accumulate} parts; change one"
            )
        self._config, self._data, self._model = config, data, model
        self._refresher, self._checkpoints, self._folder = refresher, checkpoints, folder
        self._order = SampleOrder(config.seed, len(data.questions), config.optim.batch_questions)
        self._selector = Selector(model.encoder, data.passages, config.search)
        self._replicated = replicated(model, self._ranks)
        self._optimizers = [
            TowerOptimizer(name, tower, lr, config.optim)
            for name, tower, lr in (
                ("retriever", model.encoder, config.optim.encoder_lr),
                ("reader", model.reader, config.optim.reader_lr),
            )
            if tower is not None and any(weight.requires_grad for weight in tower.parameters())
        ]
        self._evaluation = Evaluation(held_out, config.evaluation, config.seed) if held_out else None
        self._best = float("-inf")

    def run(self) -> RunResult:
        """Train from the newest checkpoint, or from the start, to the last step.

        Raises:
            NumericsError: A loss or gradient is not finite; the newest checkpoint is before it.
            IndexNotReady: The index could not be had in time.
            OutOfResources: A checkpoint did not fit the disk.
        """
        start = self._resume()
        is_new = start == 0
        log = RunLog(self._folder, resume_step=start) if self._ranks.is_first else None
        before = self._evaluate(0, log) if is_new else None
        stopped, step = False, start
        try:
            for step in range(start, self._config.optim.steps):
                metrics, timings = self._step(step)
                if log is not None:
                    log.step(step, metrics, timings)
                self._watch.on_step(step, metrics | timings)
                stopped = bool(self._ranks.from_first(self._watch.should_stop()))
                done = step + 1
                is_last = done == self._config.optim.steps
                if not is_last and self._config.evaluation.every_steps and done % self._config.evaluation.every_steps == 0:
                    self._evaluate(done, log)
                if is_last or stopped:
                    self._save(done, finish=True)
                elif done % self._config.checkpoint.every_steps == 0:
                    self._save(done, finish=not self._config.checkpoint.asynchronous)
                if stopped:
                    break
            step = max(step + 1, start) if self._config.optim.steps > start else start
            after = None if stopped else self._evaluate(step, log)
            return RunResult(step, stopped and step < self._config.optim.steps, before, after)
        finally:
            if log is not None:
                log.close()

    def _step(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Do one optimizer step and return its numbers and its times."""
        torch.manual_seed(seed_of(self._config.seed, "step", step, self._ranks.rank) % 2**31)
        began = time.perf_counter()
        report = self._before_step(step)
        refreshed = time.perf_counter()
        share = self._order.share(step, self._ranks.rank, self._ranks.world_size)
        parts = np.array_split(share, self._config.optim.accumulate)
        metrics: dict[str, float] = {}
        search_s = learn_s = 0.0
        self._model.train()
        for number, part in enumerate(parts):
            part_began = time.perf_counter()
            selection = self._select(part, step)
            selected = time.perf_counter()
            weight = len(part) / len(share)
            with self._no_sync(number < len(parts) - 1):
                output = self._replicated(selection)
                self._check(output.loss, step, part)
                (output.loss * weight).backward()
            learn_s += time.perf_counter() - selected
            search_s += selected - part_began
            for name, value in {**selection.metrics, **output.metrics}.items():
                metrics[name] = metrics.get(name, 0.0) + value * weight
        moved = time.perf_counter()
        norms = {f"grad_norm/{one.name}": one.clip() for one in self._optimizers}
        for one in self._optimizers:
            one.move(step)
        self._model.after_step()
        metrics = self._ranks.mean(metrics) | norms
        metrics |= {"index/version": report.version, "index/staleness": report.staleness}
        if report.probe is not None:
            metrics |= {"index/probe_cosine": report.probe.cosine, "index/probe_overlap": report.probe.overlap}
        now = time.perf_counter()
        timings = {
            "time/step_s": now - began,
            "time/refresh_s": refreshed - began,
            "time/stall_s": report.stall_s,
            "time/search_s": search_s,
            "time/learn_s": learn_s,
            "time/move_s": now - moved,
            "questions_per_s": self._config.optim.batch_questions / (now - began),
        }
        return metrics, timings

    def _before_step(self, step: int) -> RefreshReport:
        report = self._refresher.before_step(step, self._model.save_passages, self._model.probe)
        if report.activated is not None and self._ranks.world_size > 1:
            self._ranks.barrier()  # The first rank has loaded the version on every shard by now.
            if self._config.refresh.is_adaptive:
                plan = self._ranks.from_first(self._refresher.plan.to_json())
                self._refresher.follow(RefreshPlan.from_json(plan))
        return report

    def _select(self, part: np.ndarray, step: int) -> Selection:
        questions = [self._data.questions[index] for index in part.tolist()]
        self._model.encoder.eval()
        selection = self._selector.select(questions, lambda queries, k: self._refresher.search(queries, k, step))
        self._model.encoder.train()
        return selection

    def _check(self, loss: torch.Tensor, step: int, part: np.ndarray) -> None:
        if not torch.isfinite(loss):
            names = ", ".join(self._data.questions[index].question_id for index in part.tolist()[:5])
            raise NumericsError(
                f"the loss of step {step} is {float(loss)}; no weight was moved. Questions: {names}. Lower the "
                "learning rates or take the questions out; the newest checkpoint is as it was"
            )

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Let gradients stay local while more parts follow."""
        if wanted and isinstance(self._replicated, DistributedDataParallel):
            return self._replicated.no_sync()
        return contextlib.nullcontext()

    def _evaluate(self, step: int, log: RunLog | None) -> EvaluationReport | None:
        """Judge the towers on the first rank; the others wait."""
        if self._evaluation is None:
            return None
        report = None
        if self._ranks.is_first:
            report = self._evaluation.run(self._model.encoder, self._model.reader)
            if log is not None:
                log.evaluation(step, report.means())
        self._ranks.barrier()
        return report

    def _tensors(self) -> dict[str, Any]:
        model, optimizers = get_state_dict(
            self._model, [one.optimizer for one in self._optimizers], options=_OPTIONS
        )
        return {"model": model, "optimizers": optimizers}

    def _save(self, step: int, *, finish: bool) -> None:
        facts = {
            "seed": self._config.seed,
            "refresh": self._refresher.state().to_json(),
            "teacher": self._model.state(),
        }
        write = self._checkpoints.save if finish else self._checkpoints.begin
        write(step, self._tensors(), facts)
        kept = [RefresherState.from_json(one["refresh"]) for one in self._checkpoints.kept_facts()]
        if self._ranks.is_first:
            self._refresher.collect([*kept, self._refresher.state()])

    def _resume(self) -> int:
        """Take up the newest checkpoint and return how many steps are done."""
        saved = self._checkpoints.newest()
        if saved is None:
            return 0
        tensors = self._tensors()
        self._checkpoints.load(saved, tensors)
        set_state_dict(
            self._model,
            [one.optimizer for one in self._optimizers],
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizers"],
            options=_OPTIONS,
        )
        self._model.load_state(saved.facts["teacher"])
        self._refresher.restore(RefresherState.from_json(saved.facts["refresh"]))
        _log.info("resumed from '%s' (step %d)", saved.folder, saved.step)
        return saved.step
