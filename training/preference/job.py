"""One run of a TRL trainer as a job: its record, its checkpoints, its result.

transformers writes `checkpoint-N` in place and resumes from the highest N, also from one a crash left half
written. Here a checkpoint counts once a marker stands in it, written after everything else.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.errors import CheckpointError, NumericsError
from training.toml_config import fingerprint

COMPLETE = "COMPLETE"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job leaves."""

    model: Path
    """Folder of the result: weights, or the adapter where one was trained, and the tokenizer's files."""
    num_steps: int
    """Optimiser steps taken."""
    metrics: Mapping[str, float]
    """The last record."""
    history: tuple[Mapping[str, float], ...]
    """Every record, oldest first, `step` in each."""
    stopped: str = ""
    """Why the job ended before its steps; empty where it did not."""

    def with_metrics(self, extra: Mapping[str, float]) -> JobResult:
        """Return the result with more in its last record."""
        return replace(self, metrics={**self.metrics, **extra})


class _Keeper(TrainerCallback):
    """Marks finished checkpoints and stops at numbers that are none."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (folder / COMPLETE).touch()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise NumericsError(
                    f"{name} is {value} at step {state.global_step}; lower train.lr, or look at the batch"
                )


def newest_checkpoint(out: Path) -> Path | None:
    """Return the newest finished checkpoint of a job's folder, None where there is none."""
    done = [path.parent for path in (out / "checkpoints").glob(f"checkpoint-*/{COMPLETE}")]
    return max(done, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def prepare_folder(out: Path, config: Any, *, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, None to begin; the folder then names its configuration.

    Raises:
        CheckpointError: The folder holds a run of another configuration, or one that was not to be resumed.
    """
    out.mkdir(parents=True, exist_ok=True)
    record, mine = out / "config.json", fingerprint(config)
    if record.exists():
        if not resume:
            raise CheckpointError(f"{out} holds a run already; resume it, or choose another folder")
        theirs = json.loads(record.read_text(encoding="utf-8"))["fingerprint"]
        if theirs != mine:
            raise CheckpointError(
                f"{out} belongs to configuration {theirs}, this one is {mine}; use that one or another folder"
            )
        return newest_checkpoint(out)
    record.write_text(json.dumps({"fingerprint": mine, "config": repr(config)}, indent=1), encoding="utf-8")
    return None


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files byte for byte, so that its hash in a release stays the same."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


def run_trainer(
    trainer: Trainer,
    out: Path,
    source: Path,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> JobResult:
    """Train to the end and save the result with the tokenizer it started from.

    Args:
        trainer: Ready.
        out: The job's folder.
        source: Folder of the model the job started from.
        checkpoint: Where to go on from.
        callbacks: The caller's, for progress and reports.

    Raises:
        NumericsError: A loss or gradient is not finite.
    """
    for callback in (_Keeper(), *callbacks):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    folder = out / "model"
    trainer.save_model(str(folder))
    copy_tokenizer(source, folder)
    history = tuple(
        {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        for record in trainer.state.log_history
        if "train_runtime" not in record
    )
    with (out / "log.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in history)
    return JobResult(folder, trainer.state.global_step, history[-1] if history else {}, history)
