"""A joint run as a process of its own, to be killed, or to be one of several ranks.

Usage: joint_victim.py FOLDER ENCODER READER CHANGES; CHANGES is JSON of fields of the parts of JointConfig.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from training.joint.config import (
    CheckpointConfig,
    EncoderConfig,
    JointConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

CITIES = [
    "Lisbon",
    "Quito",
    "Oslo",
    "Accra",
    "Hanoi",
    "Sofia",
    "Riga",
    "Lima",
    "Doha",
    "Bern",
    "Cairo",
    "Minsk",
]
OWNERS = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jun", "Kim", "Leo"]


def lookup_set(*, has_negatives: bool = False) -> TrainingSet:
    """Twelve facts and a question of each."""
    passages, questions = [], []
    for index, (city, owner) in enumerate(zip(CITIES, OWNERS, strict=True)):
        fact = f"The keeper of the {city} lighthouse is {owner}."
        passages.append(TrainingPassage(f"p{index}", fact, title=city))
        wrong = (f"p{(index + 1) % len(CITIES)}",) if has_negatives else ()
        asked = f"Who keeps the lighthouse of {city}?"
        questions.append(TrainingQuestion(f"q{index}", asked, (owner,), (f"p{index}",), wrong))
    return TrainingSet("lookup", tuple(passages), tuple(questions))


def joint_config(encoder: str, reader: str, changes: dict[str, dict]) -> JointConfig:
    from training.index.schedule import RefreshConfig

    config = JointConfig(
        seed=3,
        encoder=EncoderConfig(model=encoder, max_passage_tokens=64),
        reader=ReaderConfig(model=reader),
        loss=LossConfig(contrastive_weight=0.5),
        search=SearchConfig(k=3, rerank=2),
        refresh=RefreshConfig(mode="async", interval_steps=3, delay_steps=2),
        optim=OptimConfig(steps=8, batch_questions=4, encoder_lr=1e-3, reader_lr=1e-3, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=2),
    )
    parts = {name: replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return replace(config, **parts)


def main() -> None:
    folder, encoder, reader, changes = sys.argv[1:5]
    import torch

    from training.joint.parallel import torchrun_ranks
    from training.joint.run import run_joint
    from training.joint.trainer import Watch

    torch.set_num_threads(1)

    def tell(step: int, metrics: dict[str, float]) -> None:
        sys.stdout.write(f"step {step} done\n")
        sys.stdout.flush()

    asked = json.loads(changes)
    sharding = asked.pop("sharding", "ddp")
    with torchrun_ranks() as ranks:
        config = joint_config(encoder, reader, asked)
        watch = Watch(on_step=tell)
        run_joint(config, lookup_set(), Path(folder), ranks=ranks, watch=watch, sharding=sharding)


if __name__ == "__main__":
    main()
