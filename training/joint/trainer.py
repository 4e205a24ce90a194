"""The joint loop: refresh, step, log, evaluate, save; the same alone, under torchrun and under Ray Train."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from training.checkpoints.peer_memory import PeerMemory
from training.checkpoints.run_checkpoints import RunCheckpoints
from training.errors import CheckpointError, ConfigError
from training.index.refresh_report import RefresherState, RefreshReport
from training.index.refresher import Refresher
from training.index.schedule import RefreshPlan
from training.joint.config import JointConfig
from training.joint.evaluate import Evaluation, EvaluationReport
from training.joint.joint_model import JointModel
from training.joint.optimizers import TowerOptimizer
from training.joint.order import SampleOrder, seed_everything
from training.joint.parallel import Ranks
from training.joint.run_log import RunLog
from training.joint.step import JointStep, is_trained
from training.types import TrainingSet

_log = logging.getLogger(__name__)

_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    steps: int
    """Optimizer steps done in all."""
    is_complete: bool
    """Whether it reached its last step; if not it was told to stop and can be resumed."""
    before: EvaluationReport | None
    """Held-out questions before the first step; None on other ranks, or where there are none."""
    after: EvaluationReport | None
    """Held-out questions after the last step."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the outside sees of a run, and how it stops it."""

    on_step: Callable[[int, dict[str, float]], None] = field(default=lambda step, metrics: None)
    """Called on every rank after each step with its number and all its figures."""
    should_stop: Callable[[], bool] = field(default=lambda: False)
    """Asked on every rank after each step; the first rank's True saves a checkpoint and ends the run."""


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
        held_out: TrainingSet | None,
        ranks: Ranks,
        watch: Watch,
        peers: PeerMemory | None = None,
    ) -> None:
        """Compose a run; `training.joint.run.run_joint` is the usual way.

        Args:
            config: What decides the result.
            data: Passages that are searched and questions trained on.
            model: Both towers.
            refresher: The index; this rank's view of it.
            checkpoints: Where the run is saved.
            folder: Of the run: the first rank writes its logs there.
            held_out: Questions it is judged by.
            ranks: This process among the others.
            watch: The outside.
            peers: Where copies of the run are held between checkpoints; None where there are none.

        Raises:
            ConfigError: The questions of a step cannot be shared evenly.
            DataError: There is too little data.
        """
        per_rank, left = divmod(config.optim.batch_questions, ranks.world_size)
        if left or per_rank < config.optim.accumulate:
            raise ConfigError(
                f"optim.batch_questions={config.optim.batch_questions} cannot be shared evenly by "
                f"{ranks.world_size} ranks in accumulate={config.optim.accumulate} parts; change one of them"
            )
        self._config, self._data, self._model = config, data, model
        self._refresher, self._checkpoints, self._folder = refresher, checkpoints, folder
        self._ranks, self._watch, self._peers = ranks, watch, peers
        self._order = SampleOrder(config.seed, len(data.questions), config.optim.batch_questions)
        towers = (("retriever", model.encoder, config.optim.encoder_lr),)
        towers += (("reader", model.reader, config.optim.reader_lr),)
        self._optimizers = [
            TowerOptimizer(name, tower, lr, config.optim)
            for name, tower, lr in towers
            if tower is not None and is_trained(tower)
        ]
        self._step = JointStep(config, model, self._optimizers, data.passages, ranks)
        self._evaluation = Evaluation(held_out, config.evaluation, config.seed) if held_out else None
        self._best = float("-inf")

    def run(self) -> RunResult:
        """Train from the newest checkpoint, or from the start, to the last step.

        Raises:
            NumericsError: A loss or gradient is not finite; the newest checkpoint is from before it.
            IndexNotReady: The index could not be had in time.
            OutOfResources: A checkpoint did not fit the disk.
            CheckpointError: There are checkpoints, but none that can be resumed.
        """
        done = self._resume()
        log = RunLog(self._folder, resume_step=done) if self._ranks.is_first else None
        before = self._evaluate(0, log) if done == 0 else self._evaluated(0)
        after, stopped = None, False
        last = self._config.optim.steps
        try:
            while done < last and not stopped:
                self._one(done, log)
                done += 1
                stopped = bool(self._ranks.from_first(self._watch.should_stop()))
                every = self._config.evaluation.every_steps
                is_better = False
                if done == last or (every and done % every == 0):
                    after = self._evaluate(done, log)
                    is_better = self._is_better(after)
                if done == last or stopped or is_better:
                    self._save(done, finish=True)
                elif done % self._config.checkpoint.every_steps == 0:
                    self._save(done, finish=not self._config.checkpoint.asynchronous)
                elif self._peers is not None and done % self._config.checkpoint.memory_every_steps == 0:
                    self._peers.begin(done, self._tensors(), self._facts())
                if is_better:
                    self._checkpoints.mark_best(done)
            self._checkpoints.wait()
        finally:
            if log is not None:
                log.close()
        if done == last and after is None:  # Nothing was left to do.
            after = self._evaluated(done)
        return RunResult(done, done == last, before, after if done == last else None)

    def _one(self, step: int, log: RunLog | None) -> None:
        """Do one step and tell of it."""
        seed_everything(self._config.seed, "step", step, self._ranks.rank)
        began = time.perf_counter()
        refreshed = self._before_step(step)
        refresh_s = time.perf_counter() - began
        indices = self._order.share(step, self._ranks.rank, self._ranks.world_size)
        questions = [self._data.questions[index] for index in indices.tolist()]
        report = self._step.run(step, questions, lambda queries, k: self._refresher.search(queries, k, step))
        metrics = report.metrics | {
            "index/version": refreshed.version,
            "index/staleness": refreshed.staleness,
        }
        if refreshed.probe is not None:
            metrics["index/probe_cosine"] = refreshed.probe.cosine
            metrics["index/probe_overlap"] = refreshed.probe.overlap
        step_s = time.perf_counter() - began
        timings = report.timings | {
            "time/refresh_s": refresh_s,
            "time/stall_s": refreshed.stall_s,
            "time/step_s": step_s,
            "questions_per_s": self._config.optim.batch_questions / step_s,
        }
        if log is not None:
            log.step(step, metrics, timings)
        self._watch.on_step(step, metrics | timings)

    def _before_step(self, step: int) -> RefreshReport:
        """Have the index be as the plan says; the first rank drives, the others follow it."""
        with self._after_first(self._refresher.plan.activation_due(step) is not None):
            report = self._refresher.before_step(step, self._model.save_passages, self._model.probe_encoder)
        if report.activated is not None and self._config.refresh.is_adaptive:
            plan = self._ranks.from_first(self._refresher.plan.to_json())
            if not self._ranks.is_first:
                self._refresher.follow(RefreshPlan.from_json(plan))
        return report

    @contextmanager
    def _after_first(self, wanted: bool) -> Iterator[None]:
        """Let the other ranks do something only when the first one has done it."""
        if wanted and not self._ranks.is_first:
            self._ranks.barrier()
        yield
        if wanted and self._ranks.is_first:
            self._ranks.barrier()

    def _evaluate(self, step: int, log: RunLog | None) -> EvaluationReport | None:
        """Judge the towers on the first rank; the others wait and get None."""
        if self._evaluation is None:
            return None
        report = None
        if self._ranks.is_first:
            report = self._evaluation.run(self._model.encoder, self._model.reader)
            report.save(self._report_path(step))
            if log is not None:
                log.evaluation(step, report.means())
        self._ranks.barrier()
        return report

    def _evaluated(self, step: int) -> EvaluationReport | None:
        """Return an evaluation of before a restart, on the first rank."""
        path = self._report_path(step)
        return EvaluationReport.load(path) if self._ranks.is_first and path.exists() else None

    def _report_path(self, step: int) -> Path:
        return self._folder / "held_out" / f"step-{step}.json"

    def _is_better(self, report: EvaluationReport | None) -> bool:
        """Return whether the held-out questions were never answered better; on every rank alike."""
        score = float("-inf") if report is None else sum(report.means().values())
        is_better = bool(self._ranks.from_first(score > self._best))
        self._best = max(self._best, score)
        return is_better

    def _tensors(self) -> dict[str, Any]:
        optimizers = [one.optimizer for one in self._optimizers]
        model_state, optimizer_state = get_state_dict(self._model, optimizers, options=_OPTIONS)
        return {"model": model_state, "optimizers": optimizer_state}

    def _save(self, step: int, *, finish: bool) -> None:
        write = self._checkpoints.save if finish else self._checkpoints.begin
        write(step, self._tensors(), self._facts())
        if self._ranks.is_first:
            kept = self._checkpoints.kept_facts()
            if self._peers is not None:
                kept += self._peers.kept_facts()
            states = [RefresherState.from_json(one["refresh"]) for one in kept]
            self._refresher.collect([*states, self._refresher.state()])

    def _facts(self) -> dict[str, Any]:
        return {
            "refresh": self._refresher.state().to_json(),
            "teacher": self._model.state(),
            "best": self._best if self._best > float("-inf") else None,
        }

    def _resume(self) -> int:
        """Take up the newest checkpoint, or copy in memory, and return how many steps are done."""
        saved = self._checkpoints.newest()
        step = 0 if saved is None else saved.step
        copied = None if self._peers is None else self._peers.newest()
        if saved is None and copied is None:
            return 0  # Before optimizers have any state.
        tensors = self._tensors()
        if self._peers is not None and copied is not None and copied > step:
            facts, step = self._ranks.from_first(self._peers.load(copied, tensors)), copied
        elif saved is None:
            return 0
        else:
            self._checkpoints.load(saved, tensors)
            facts = saved.facts
        set_state_dict(
            self._model,
            [one.optimizer for one in self._optimizers],
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizers"],
            options=_OPTIONS,
        )
        self._model.load_state(facts["teacher"])
        with self._after_first(wanted=True):
            self._refresher.restore(RefresherState.from_json(facts["refresh"]))
        self._best = float("-inf") if facts["best"] is None else facts["best"]
        _log.info("resumed after step %d", step)
        return step


def load_weights(model: JointModel, checkpoints: RunCheckpoints) -> int:
    """Give a model the weights of the newest checkpoint and return the steps they have seen.

    Raises:
        CheckpointError: There is none, or it does not fit the model.
    """
    saved = checkpoints.newest()
    if saved is None:
        raise CheckpointError("there is no checkpoint to take weights from; train first")
    tensors = {"model": get_model_state_dict(model, options=_OPTIONS)}
    checkpoints.load(saved, tensors)
    set_model_state_dict(model, tensors["model"], options=_OPTIONS)
    return saved.step
