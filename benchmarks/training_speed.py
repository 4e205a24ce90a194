"""What our loop costs beside plain libraries, and what its savings save.

Run: `python -m benchmarks.training_speed [--quick] [--rounds N]`

Arms, interleaved A B B A in one process, each a ratio of medians of step times:
`contrastive_vs_st`: our contrastive step over `SentenceTransformerTrainer`'s, the same model, texts and batch
(samples/s, ours over theirs). `sft_vs_trl`: our supervised job over TRL's `SFTTrainer` that prepares the same
texts itself (tokens/s). `shared_vs_two_pass`: a joint step whose teacher is the training forward, over
one with a second pass (speed). `gradcache`: the contrastive step through GradCache over the plain one
(slowdown). `refresh`: seconds the trainer loses to an index refreshed beside it over those of a blocking one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.report import Report
from benchmarks.training_models import READER, cut_encoder
from benchmarks.training_resume_victim import facts
from serving.prompt import PromptPassage
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
from training.preference.examples import CitedAnswer
from training.preference.policy import load_policy
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.sft import SftConfig
from training.preference.sft import run as run_sft
from training.preference.trl_names import SFTConfig, SFTTrainer
from training.types import TrainingSet


def base_config(encoder: Path, steps: int) -> JointConfig:
    """Return a joint run of both towers on a fixed index."""
    return JointConfig(
        encoder=EncoderConfig(model=str(encoder), max_passage_tokens=64),
        reader=ReaderConfig(model=str(READER), max_passage_tokens=64),
        loss=LossConfig(null_passage=False),
        search=SearchConfig(k=4, rerank=1),
        refresh=RefreshConfig(mode="blocking", interval_steps=10**6, delay_steps=0),
        optim=OptimConfig(steps=steps, batch_questions=16, encoder_lr=1e-5, reader_lr=1e-5, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=10**6),
    )


def contrastive_config(encoder: Path, steps: int, cache_rows: int) -> JointConfig:
    """Return a run of the retriever alone on labels."""
    config = base_config(encoder, steps)
    loss = LossConfig(
        retriever=None, contrastive_weight=1.0, contrastive_negatives=0, contrastive_cache_rows=cache_rows
    )
    return replace(
        config,
        reader=ReaderConfig(),
        loss=loss,
        optim=replace(config.optim, batch_questions=32, warmup_steps=1),
    )


def seconds(config: JointConfig, data: TrainingSet, key: str = "time/learn_s") -> list[float]:
    """Return what each step of a run took, the first two left out."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run_joint(config, data, Path(folder), watch=Watch(on_step=lambda _, m: times.append(m[key])))
    return times[2:]


class StepClock(TrainerCallback):
    """Notes how long a transformers trainer's steps take."""

    def __init__(self) -> None:
        """Start without a step."""
        self.times: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Stop it."""
        self.times.append(time.perf_counter() - self._began)


def st_seconds(encoder: Path, data: TrainingSet, steps: int) -> list[float]:
    """Return what each step of sentence-transformers' own trainer took, the first two left out."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(encoder), device="cpu")
    model.max_seq_length = 64
    rows = Dataset.from_dict(
        {
            "anchor": [question.text for question in data.questions],
            "positive": [passage.full_text for passage in data.passages],
        }
    )
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=32,
                learning_rate=1e-5,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=rows,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[clock],
        ).train()
    return clock.times[2:]


def cited_answers(data: TrainingSet) -> list[CitedAnswer]:
    """Return every question with four passages, the right one first, and a cited answer."""
    passages = data.passages
    return [
        CitedAnswer(
            question.text,
            tuple(
                PromptPassage(f"lakes/{n % len(passages)}", "Lakes", passages[n % len(passages)].text)
                for n in range(row, row + 4)
            ),
            f"It is {question.answers[0]} feet deep [1].",
        )
        for row, question in enumerate(data.questions)
    ]


def sft_settings(steps: int) -> TrainSettings:
    """Return the settings of both supervised runs."""
    return TrainSettings(steps=steps, batch_size=16, lr=1e-5)


def sft_seconds(examples: Sequence[CitedAnswer], steps: int) -> list[float]:
    """Return what each step of our supervised job took, the first two left out."""
    clock = StepClock()
    settings = SftConfig(policy=PolicySettings(folder=READER), train=sft_settings(steps))
    with tempfile.TemporaryDirectory() as folder:
        run_sft(settings, examples, Path(folder) / "job", callbacks=[clock])
    return clock.times[2:]


def trl_seconds(examples: Sequence[CitedAnswer], steps: int) -> list[float]:
    """Return what each step of TRL's trainer took on the same texts, prepared by TRL itself."""
    from datasets import Dataset

    policy = load_policy(PolicySettings(folder=READER))
    tokenizer = policy.hf_tokenizer
    rows = Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode(example.prompt_ids(policy.tokenizer)),
                "completion": f" {example.answer}",
            }
            for example in examples
        ]
    )
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            model=policy.model,
            args=SFTConfig(**sft_settings(steps).arguments(Path(folder), PolicySettings(folder=READER))),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock.times[2:]


def ratio(rounds: int, one: Callable[[], list[float]], two: Callable[[], list[float]]) -> list[float]:
    """Return median(two) / median(one) of each round, measured one, two, two, one."""
    found = []
    for _ in range(rounds):
        first, second, third, fourth = one(), two(), two(), one()
        found.append(float(np.median(second + third) / np.median(first + fourth)))
    return found


def main() -> None:
    """Measure every arm and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: all is made here")
    parser.add_argument("--quick", action="store_true", help="one round of few steps; keeps nothing")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds, steps = (1, 5) if options.quick else (options.rounds, 14)
    report = Report("training_speed", quick=options.quick)
    data = facts()

    def add(arm: str, values: list[float], **detail: object) -> None:
        report.add(arm, "ratio", round(float(np.median(values)), 3), "ratio", runs=values, **detail)

    with tempfile.TemporaryDirectory() as home, torchrun_ranks():
        torch.set_num_threads(2)
        encoder = cut_encoder(Path(home) / "encoder", 2)
        ours = contrastive_config(encoder, steps, 0)
        # Ours over theirs in samples/s is theirs over ours in seconds; search and selection count as ours.
        add(
            "contrastive_vs_st",
            ratio(
                rounds, lambda: seconds(ours, data, "time/step_s"), lambda: st_seconds(encoder, data, steps)
            ),
            target=1.0,
            better="higher",
        )
        examples = cited_answers(data)
        add(
            "sft_vs_trl",
            ratio(rounds, lambda: sft_seconds(examples, steps), lambda: trl_seconds(examples, steps)),
            target=0.95,
            better="higher",
        )
        cached = contrastive_config(encoder, steps, 8)
        add(
            "gradcache", ratio(rounds, lambda: seconds(ours, data), lambda: seconds(cached, data)), target=2.0
        )
        shared = base_config(encoder, steps)
        two_pass = replace(shared, loss=replace(shared.loss, two_pass=True))
        add(
            "shared_vs_two_pass",
            ratio(rounds, lambda: seconds(shared, data), lambda: seconds(two_pass, data)),
            target=1.25,
            better="higher",
        )
        blocking = replace(shared, refresh=RefreshConfig(mode="blocking", interval_steps=6, delay_steps=0))
        beside = replace(shared, refresh=RefreshConfig(mode="async", interval_steps=6, delay_steps=6))
        lost = []
        for _ in range(rounds):
            # Whole steps: encoders beside the trainer also take cores from it on a machine without others.
            plain = float(np.sum(seconds(shared, data, "time/step_s")))
            waited = float(np.sum(seconds(blocking, data, "time/step_s"))) - plain
            shadowed = float(np.sum(seconds(beside, data, "time/step_s"))) - plain
            lost.append(max(shadowed, 0.0) / max(waited, 1e-9))
        add("refresh", lost, target=0.05, better="lower")
    report.save()


if __name__ == "__main__":
    main()
