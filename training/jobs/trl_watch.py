"""What a job sees of a trainer of TRL, and how it stops one: the logs of every kind then look alike."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.joint.run_log import RunLog
from training.joint.trainer import Watch


class TrlWatch(TrainerCallback):
    """Writes `metrics.jsonl` and `timings.jsonl` as a joint run does, and asks the watch after each step."""

    def __init__(self, out: Path, watch: Watch, boundary: int = 1) -> None:
        """Prepare.

        Args:
            out: The job's folder.
            watch: The outside.
            boundary: Steps between which the trainer must not be saved: those that share a generation.
        """
        self._out, self._watch, self._boundary = out, watch, boundary
        self._log: RunLog | None = None
        self._began_s = 0.0
        self._step_s = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the log up where the checkpoint is."""
        self._log = RunLog(self._out, resume_step=state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._began_s = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop where that was asked for."""
        self._step_s = time.perf_counter() - self._began_s
        if self._watch.should_stop() and state.global_step % self._boundary == 0:
            control.should_save = True
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write the figures of a step."""
        if self._log is None or logs is None or "train_runtime" in logs:
            return
        metrics = {
            name: float(value)
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        timings = {"time/step_s": self._step_s}
        self._log.step(state.global_step - 1, metrics, timings)
        self._watch.on_step(state.global_step - 1, metrics | timings)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None
