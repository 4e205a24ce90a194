"""A joint run as a process of its own, to be killed; see `training_resume`.

Run: `python -m benchmarks.training_resume_victim FOLDER ENCODER`, in torchrun's environment for several
ranks. Prints `step N` after each step, `saving N` when a checkpoint begins to be written, `ended` at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.training_models import READER
from training.checkpoints.run_checkpoints import RunCheckpoints
from training.index.schedule import RefreshConfig
from training.joint.config import (
    CheckpointConfig,
    EncoderConfig,
    JointConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.joint.parallel import torchrun_ranks
from training.joint.run import run_joint
from training.joint.trainer import Watch
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

STEPS = 24
"""Steps of the run; versions are snapshotted every 6, searched 4 later, checkpoints written every 3."""
NUM_FACTS = 600
"""Passages, a question to each: three blocks to encode at every refresh."""


def facts() -> TrainingSet:
    """Return passages that state one number each, and the questions for them."""
    depths = [(n * 7919) % 9973 for n in range(NUM_FACTS)]
    passages = [
        TrainingPassage(f"p{n}", f"The depth of lake number {n} is {depth} feet.")
        for n, depth in enumerate(depths)
    ]
    questions = [
        TrainingQuestion(f"q{n}", f"How deep is lake number {n}?", (str(depth),), (f"p{n}",))
        for n, depth in enumerate(depths)
    ]
    return TrainingSet("lakes", passages, questions)


def config(encoder: Path) -> JointConfig:
    """Return a run with every kind of state: two towers, both losses, an index refreshed beside it."""
    return JointConfig(
        encoder=EncoderConfig(model=str(encoder), max_passage_tokens=48),
        reader=ReaderConfig(model=str(READER), max_passage_tokens=48),
        loss=LossConfig(contrastive_weight=0.3),
        search=SearchConfig(k=3, rerank=2),
        refresh=RefreshConfig(mode="async", interval_steps=6, delay_steps=4),
        optim=OptimConfig(steps=STEPS, batch_questions=4, encoder_lr=1e-4, reader_lr=1e-4, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=3),
    )


class _Telling(RunCheckpoints):
    """Says when it begins to write."""

    def begin(self, step: int, tensors: dict, facts: dict) -> None:
        """Write in the background; see `RunCheckpoints.begin`."""
        print(f"saving {step}", flush=True)
        super().begin(step, tensors, facts)


def main() -> None:
    """Run to the end, or until killed."""
    import torch

    import training.joint.run

    training.joint.run.RunCheckpoints = _Telling  # pyright: ignore[reportPrivateImportUsage]
    torch.set_num_threads(1)
    folder, encoder = Path(sys.argv[1]), Path(sys.argv[2])
    with torchrun_ranks() as ranks:
        tell = Watch(on_step=lambda step, _: print(f"step {step}", flush=True))
        run_joint(config(encoder), facts(), folder, ranks=ranks, watch=tell)
    print("ended", flush=True)


if __name__ == "__main__":
    main()
